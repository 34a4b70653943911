// A row in one kernel: both inputs are copied into shared memory once, and every sweep reads them
// there. Device memory sees two readings and one writing, the least there is. The row belongs to a
// team (team.cuh); each member holds a slice.
//
// Elements keep their place relative to 16 bytes on the way, so unaligned rows copy in whole
// vectors but for head and tail, and sweeps see the same class in the same thread whatever the
// alignment.
#pragma once

#include <cuda_pipeline_primitives.h>

#include "cuda/finish.cuh"
#include "cuda/select.cuh"
#include "cuda/team.cuh"

namespace gkd::cuda {

/// What a fused launch is given.
template <class T>
struct FusedCall {
  Problem p;
  RowState<T>* state;
  RowReport* report;
  const T* weight;
  void* gradient;
  GridScratch* scratch;  ///< of GridTeam: one per team
  int members;
  std::int64_t slice_classes;  ///< of every member but the last ones
  bool constant_cut, all_kl;
};

/// A slice on chip; j counts from the slice's first class.
template <class T, class Elem>
struct Resident {
  using Value = T;
  const Elem *s, *u;

  __device__ __forceinline__ void load(std::int64_t j, T* student, T* teacher) const {
    *student = widen<T>(s[j]);
    *teacher = widen<T>(u[j]);
  }
  __device__ __forceinline__ T rank(std::int64_t j, bool by_student) const {
    return widen<T>((by_student ? s : u)[j]);
  }
  __device__ __forceinline__ void store(void* gradient, std::int64_t at, T value) const {
    narrow(value, static_cast<Elem*>(gradient) + at);
  }
};

constexpr int kVectorBytes = 16;

/// Shared bytes that a slice of one input needs, with room for its place relative to a vector.
template <class Elem>
__host__ __device__ constexpr std::size_t slice_bytes(std::int64_t classes) {
  return (static_cast<std::size_t>(classes) * sizeof(Elem) + 2 * kVectorBytes - 1) / kVectorBytes *
         kVectorBytes;
}

/// Starts copying `count` elements behind `to`; returns where the first one will be.
template <int kThreads, class Elem>
__device__ const Elem* copy_slice(char* to, const Elem* from, int count) {
  constexpr int kPer = kVectorBytes / int(sizeof(Elem));
  const auto place = reinterpret_cast<std::uintptr_t>(from) % kVectorBytes;
  Elem* first = reinterpret_cast<Elem*>(to + place);
  const int missing = place == 0 ? 0 : int((kVectorBytes - place) / sizeof(Elem));
  const int head = missing < count ? missing : count;
  const int vectors = (count - head) / kPer, tail = head + vectors * kPer;
  for (int k = threadIdx.x; k < vectors; k += kThreads) {
    __pipeline_memcpy_async(first + head + k * kPer, from + head + k * kPer, kVectorBytes);
  }
  for (int k = threadIdx.x; k < head; k += kThreads) first[k] = from[k];
  for (int k = tail + threadIdx.x; k < count; k += kThreads) first[k] = from[k];
  return first;
}

/// Shared memory beside the slices.
template <class T, class Team, int kThreads>
struct FusedStorage {
  union {
    int counts[kBins];
    unsigned long long amounts[kBins];
  };
  KeyOf<T> list[kFusedList];
  union {
    typename cub::BlockReduce<Extremes<T>, kThreads>::TempStorage extremes;
    typename cub::BlockReduce<Weighed<T>, kThreads>::TempStorage weighed;
    WindowStorage<kThreads> window;
    NarrowStorage<kThreads> narrow;
    MomentsStorage<T, kThreads> moments;
    FinishStorage finish;
    KlStorage<kThreads> kl;
  } use;
  TeamStorage<Team::kMembers> team;
  RowState<T> row;
  RowReport report;
  int kept;
};

/// The row's cut, for every thread of every member.
template <class T, int kThreads, class Source, class Team>
__device__ T fused_cut(const Problem& p, const Source& source, Slice slice, T inv_temperature,
                       FusedStorage<T, Team, kThreads>& shared, Team& team) {
  const StopRule goal = goal_of<T>(p);
  for (int b = threadIdx.x; b < kBins; b += kThreads) shared.counts[b] = 0;
  if (threadIdx.x == 0) shared.kept = 0;
  Extremes<T> ends =
      cub::BlockReduce<Extremes<T>, kThreads>(shared.use.extremes)
          .Reduce(extremes_of<T, kThreads>(source, slice, p.by_student), WidenExtremes{});
  const Mail* mail = team.gather(ends);  // its barriers also order the zeros before the counts
  ends = Extremes<T>{};
  for (int m = 0; m < team.size(); ++m) ends = WidenExtremes{}(ends, mail_of<Extremes<T>>(mail, m));

  const Bins<T> bins = bins_of(p, ends, inv_temperature);
  count_slice<T, kThreads>(source, slice, p.by_student, bins, shared.counts);
  team.add(shared.counts);
  const BinRange window =
      find_window<T, kThreads>(shared.counts, goal, bins, p.row_classes(), shared.use.window);

  const Keys<T> keys(p.ranking().dtype);
  const ClassWeight<T> amount = amount_of(p, ends.high, inv_temperature);
  Weighed<T> weighed = weigh_slice<T, kThreads>(source, slice, p.by_student, bins, amount, keys,
                                                window, shared.list, kFusedList, &shared.kept);
  __syncthreads();  // the window's storage is read no more
  weighed =
      cub::BlockReduce<Weighed<T>, kThreads>(shared.use.weighed).Reduce(weighed, AddWeighed{});
  mail = team.gather(weighed);
  weighed = Weighed<T>{};
  for (int m = 0; m < team.size(); ++m) {
    weighed = AddWeighed{}(weighed, mail_of<Weighed<T>>(mail, m));
  }

  RadixSearch<T> search{weighed.high, weighed.low, weighed.above, weighed.total};
  while (!search.found()) {  // as often in every member: they hold the same search
    const int shift = search.bin_bits();
    team.sync();  // no peer still reads the bins
    for (int b = threadIdx.x; b < kBins; b += kThreads) shared.amounts[b] = 0;
    __syncthreads();  // all zero before the first amount
    if (shared.kept <= kFusedList) {
      for (int k = threadIdx.x; k < shared.kept; k += kThreads) {
        spread_key(search, shift, keys, amount, shared.list[k], shared.amounts);
      }
    } else {
      sweep_ranks<T, kThreads>(source, slice, p.by_student, [&](T r) {
        spread_key(search, shift, keys, amount, keys.of(r), shared.amounts);
      });
    }
    team.add(shared.amounts);
    search = narrow_search<T, kThreads>(shared.amounts, goal, search, shared.use.narrow);
  }
  return keys.logit(search.high);
}

template <class T, class Elem, class Team, int kThreads>
__device__ void fused_rows(const FusedCall<T>& c, FusedStorage<T, Team, kThreads>& shared,
                           char* slices, Team& team) {
  const Problem& p = c.p;
  const T inv_temperature = static_cast<T>(1 / p.weights.temperature);
  const std::int64_t begin = min(team.rank() * c.slice_classes, p.classes);
  const int classes = static_cast<int>(min(c.slice_classes, p.classes - begin));
  const Slice slice{0, classes};
  for (std::int64_t row = team.index(); row < p.rows; row += team.count()) {
    const std::int64_t at = row * p.classes + begin;
    const RowKind kind = c.state[row].kind;
    const std::int64_t target = c.state[row].target - begin;  // no class of the slice where outside
    if (kind != RowKind::kCounted) {
      const T value = kind == RowKind::kIgnored ? T(0) : std::numeric_limits<T>::quiet_NaN();
      fill_slice<T, kThreads>(Resident<T, Elem>{}, slice, value, c.gradient, at);
      if (team.rank() == 0 && threadIdx.x == 0) {
        RowReport report;
        finalize_row(p, kind, PartKl{}, &report);
        c.report[row] = report;
      }
      continue;
    }
    const auto* s = static_cast<const Elem*>(p.student.data) + row * p.student.row_stride + begin;
    const auto* u = static_cast<const Elem*>(p.teacher.data) + row * p.teacher.row_stride + begin;
    Resident<T, Elem> source;
    source.s = copy_slice<kThreads>(slices, s, classes);
    source.u = copy_slice<kThreads>(slices + slice_bytes<Elem>(c.slice_classes), u, classes);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();  // every thread's part of the copy has landed

    T cut = c.state[row].cut;
    if (!c.constant_cut) {
      cut = fused_cut<T, kThreads>(p, source, slice, inv_temperature, shared, team);
      __syncthreads();  // the search's storage is read no more
    }
    const PartMoments part = summarise_slice<T, kThreads>(source, slice, cut, target, p.by_student,
                                                          inv_temperature, shared.use.moments);
    const Mail* mail = team.gather(part);
    if (threadIdx.x == 0) {
      shared.row.kind = kind;
      shared.row.cut = cut;
      shared.row.target = target;
    }
    __syncthreads();  // the row is in place
    if (threadIdx.x < kWarp) {
      const RowReport report = finish_parts(
          p, [&](std::int64_t m) { return mail_of<PartMoments>(mail, static_cast<int>(m)); },
          team.size(), static_cast<double>(*c.weight), &shared.row, shared.use.finish);
      if (threadIdx.x == 0) shared.report = report;
    }
    __syncthreads();  // the row's constants are known
    PartKl kl{};
    if (shared.row.kind == RowKind::kCounted) {
      kl = emit_slice<T, kThreads>(source, slice, shared.row, p.by_student, inv_temperature,
                                   c.all_kl, c.gradient, at, shared.use.kl);
    } else {
      fill_slice<T, kThreads>(source, slice, std::numeric_limits<T>::quiet_NaN(), c.gradient, at);
    }
    mail = team.gather(kl);  // its barriers also keep the slices until every thread has read them
    if (team.rank() == 0 && threadIdx.x == 0) {
      PartKl sum{};
      for (int m = 0; m < team.size(); ++m) sum = AddKl{}(sum, mail_of<PartKl>(mail, m));
      RowReport report = shared.report;
      finalize_row(p, shared.row.kind, sum, &report);
      c.report[row] = report;
      c.state[row].kind = shared.row.kind;
      c.state[row].cut = cut;
    }
    __syncthreads();  // the row is done before the next one's copies overwrite it
  }
  team.leave();
}

}  // namespace gkd::cuda
