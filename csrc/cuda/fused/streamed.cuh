// Rows of which only the ranking input's segment is copied to shared memory: twice as many classes
// fit a block. The other input is read from device memory by each of its three passes, the second
// and third time from the L2 cache.
#pragma once

#include "cuda/fused/vectors.cuh"

namespace gkd::cuda {

// Words of an input, which nothing writes while the kernel runs. They take no room in the
// first-level cache: each is read once in a pass.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 700
#define GKD_STREAM "ld.global.nc.L1::no_allocate"
#else
#define GKD_STREAM "ld.global.nc"
#endif
__device__ __forceinline__ uint4 load_streamed(const uint4* p) {
  uint4 x;
  asm(GKD_STREAM ".v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
      : "l"(p));
  return x;
}
__device__ __forceinline__ uint2 load_streamed(const uint2* p) {
  uint2 x;
  asm(GKD_STREAM ".v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "l"(p));
  return x;
}
__device__ __forceinline__ unsigned load_streamed(const unsigned* p) {
  unsigned x;
  asm(GKD_STREAM ".u32 %0, [%1];" : "=r"(x) : "l"(p));
  return x;
}
__device__ __forceinline__ unsigned short load_streamed(const unsigned short* p) {
  unsigned short x;
  asm(GKD_STREAM ".u16 %0, [%1];" : "=h"(x) : "l"(p));
  return x;
}
#undef GKD_STREAM

/// A segment in device memory that is read by words of one width.
template <class Word, class Elem>
struct StreamedWords {
  const Elem* logits;

  __device__ __forceinline__ Elem operator[](std::int64_t j) const { return logits[j]; }
};
/// Whole vector v.
template <class Word, class Elem>
__device__ __forceinline__ uint4 read_vector(const StreamedWords<Word, Elem>& segment, int v) {
  constexpr int kWords = kVectorBytes / int(sizeof(Word));
  union {
    Word words[kWords];
    uint4 vector;
  };
  const Word* from = reinterpret_cast<const Word*>(segment.logits + v * kPerVector<Elem>);
#pragma unroll
  for (int w = 0; w < kWords; ++w) words[w] = load_streamed(from + w);
  return vector;
}

/// A segment in device memory, read by vectors.
template <class Elem>
class StreamedSegment {
 public:
  StreamedSegment() = default;
  __device__ explicit StreamedSegment(const Elem* logits)
      : logits_(logits),
        misaligned_(static_cast<int>(reinterpret_cast<std::uintptr_t>(logits) % 16)) {}

  __device__ __forceinline__ Elem operator[](std::int64_t j) const { return logits_[j]; }

  /// Calls use() with the segment in the widest words that its alignment allows.
  template <class Use>
  __device__ __forceinline__ auto with_words(Use use) const {
    if (misaligned_ == 0) return use(StreamedWords<uint4, Elem>{logits_});
    if (misaligned_ == 8) return use(StreamedWords<uint2, Elem>{logits_});
    if (sizeof(Elem) == sizeof(unsigned) || misaligned_ % 4 == 0) {
      return use(StreamedWords<unsigned, Elem>{logits_});
    }
    return use(StreamedWords<unsigned short, Elem>{logits_});
  }
  /// Whole vector v.
  __device__ __forceinline__ uint4 read(int v) const {
    return with_words([=](const auto& words) { return read_vector(words, v); });
  }

 private:
  const Elem* logits_;
  int misaligned_;  ///< the address modulo 16
};

/// As ContiguousLoader, of a streamed row's segment.
template <class Elem>
struct StreamedLoader {
  using Element = Elem;
  const Elem* rank_logits;  ///< in shared memory
  StreamedSegment<Elem> other;
  float other_high;  ///< the largest of this thread's
  bool by_student;

  __device__ __forceinline__ void load(std::int64_t j, float* s, float* u) const {
    const float r = rank(j), o = load_as<float>(other[j]);
    *s = by_student ? r : o;
    *u = by_student ? o : r;
  }
  __device__ __forceinline__ float rank(std::int64_t j) const {
    return load_as<float>(rank_logits[j]);
  }
  __device__ __forceinline__ void store(void* gradient, std::int64_t index, float value) const {
    store_as(value, static_cast<Elem*>(gradient) + index);
  }
};

/// The vectors that a thread reads of the input that does not rank, kFusedThreads apart. Each is on
/// its way while the one before it is worked on.
template <class Elem>
class StreamedVectors {
 public:
  __device__ StreamedVectors(const StreamedSegment<Elem>& segment, int vectors)
      : segment_(segment), vectors_(vectors) {
    take(static_cast<int>(threadIdx.x) - kFusedThreads);
  }
  __device__ __forceinline__ uint4 take(int v) {
    const uint4 vector = next_;
    if (v + kFusedThreads < vectors_) next_ = segment_.read(v + kFusedThreads);
    return vector;
  }

 private:
  StreamedSegment<Elem> segment_;
  int vectors_;
  uint4 next_{};
};
/// As they lie in shared memory.
template <class Elem>
struct ResidentVectors {
  const Elem* segment;

  __device__ __forceinline__ uint4 take(int v) const { return read_vector(segment, v); }
};

/// A StreamedLoader that knows which input ranks: choosing for each class would take two
/// instructions.
template <class Elem, bool kByStudent>
struct StreamedInputs : StreamedLoader<Elem> {
  static constexpr bool by_student = kByStudent;
  std::conditional_t<kByStudent, const Elem*, StreamedSegment<Elem>> student;
  std::conditional_t<kByStudent, StreamedSegment<Elem>, const Elem*> teacher;

  __device__ explicit StreamedInputs(const StreamedLoader<Elem>& loader)
      : StreamedLoader<Elem>(loader) {
    if constexpr (kByStudent) {
      student = loader.rank_logits;
      teacher = loader.other;
    } else {
      student = loader.other;
      teacher = loader.rank_logits;
    }
  }
};

template <class Elem>
__device__ __forceinline__ void load_vector(const StreamedSegment<Elem>& segment, int v,
                                            float (&x)[kPerVector<Elem>]) {
  unpack<Elem>(segment.read(v), x);
}

// What the passes ask of a loader, by overloads: the ranking logits, the other input's, and, for
// the gradient, both by name.
template <class Elem>
__device__ __forceinline__ const Elem* ranking(const ContiguousLoader<float, Elem>& loader) {
  return loader.by_student ? loader.student : loader.teacher;
}
template <class Elem>
__device__ __forceinline__ const Elem* ranking(const StreamedLoader<Elem>& loader) {
  return loader.rank_logits;
}
template <class Elem>
__device__ __forceinline__ const Elem* not_ranking(const ContiguousLoader<float, Elem>& loader) {
  return loader.by_student ? loader.teacher : loader.student;
}
template <class Elem>
__device__ __forceinline__ const StreamedSegment<Elem>& not_ranking(
    const StreamedLoader<Elem>& loader) {
  return loader.other;
}
template <class Elem>
__device__ __forceinline__ ResidentVectors<Elem> other_vectors(
    const ContiguousLoader<float, Elem>& loader, int /*vectors*/) {
  return {not_ranking(loader)};
}
template <class Elem>
__device__ __forceinline__ StreamedVectors<Elem> other_vectors(const StreamedLoader<Elem>& loader,
                                                               int vectors) {
  return {loader.other, vectors};
}
template <class Elem, class Use>
__device__ __forceinline__ void with_inputs(const ContiguousLoader<float, Elem>& loader, Use use) {
  use(loader);
}
template <class Elem, class Use>
__device__ __forceinline__ void with_inputs(const StreamedLoader<Elem>& loader, Use use) {
  if (loader.by_student) {
    use(StreamedInputs<Elem, true>(loader));
  } else {
    use(StreamedInputs<Elem, false>(loader));
  }
}

/// A loader of which the search for the cut reads the ranking logits.
template <class T, class Elem>
__device__ __forceinline__ const ContiguousLoader<T, Elem>& for_ranking(
    const ContiguousLoader<T, Elem>& loader) {
  return loader;
}
template <class Elem>
__device__ __forceinline__ ContiguousLoader<float, Elem> for_ranking(
    const StreamedLoader<Elem>& loader) {
  ContiguousLoader<float, Elem> result;
  result.student = result.teacher = loader.rank_logits;
  result.by_student = loader.by_student;
  return result;
}

}  // namespace gkd::cuda
