// The longest row that each fused kernel takes, by dtype and shared memory of a block, as CSV: what
// docs/inside.md and its diagram say of the regimes. Needs no GPU.
#include <cstdio>

#include "cuda/fused/shared_memory.cuh"

namespace gkd::cuda {
namespace {

/// Shared memory that a block may opt in to, from the CUDA C++ Programming Guide's table of
/// compute capabilities.
struct Card {
  const char* capability;
  std::size_t shared_bytes;
  bool clusters;
};
constexpr Card kCards[] = {
    {"8.0", 163 << 10, false}, {"8.6 and 8.9", 99 << 10, false}, {"9.0 and 10.0", 227 << 10, true}};

template <class Elem>
void print_lines(const char* dtype, const Card& card) {
  auto line = [&](const char* strategy, int blocks, std::int64_t segment) {
    std::printf("%s,%zu,%s,%s,%d,%lld\n", card.capability, card.shared_bytes, dtype, strategy,
                blocks, static_cast<long long>(blocks * segment));
  };
  const std::size_t bytes = card.shared_bytes;
  line("block", 1, FusedLayout<Elem, SingleBlock>::max_segment_classes(bytes, false));
  for (bool streamed : {false, true}) {
    if (streamed && sizeof(Elem) > sizeof(float)) break;
    if (card.clusters) {
      const auto segment = FusedLayout<Elem, ClusterGroup>::max_segment_classes(bytes, streamed);
      const char* name = streamed ? "streamed cluster" : "cluster";
      line(name, 8, segment);  // every device with clusters grants it
      line(name, kMaxCluster, segment);
    }
    line(streamed ? "streamed grid" : "grid", kMaxGridGroup,
         FusedLayout<Elem, GridGroup>::max_segment_classes(bytes, streamed));
  }
}

}  // namespace
}  // namespace gkd::cuda

int main() {
  using namespace gkd::cuda;
  std::printf("capability,shared_bytes,dtype,regime,blocks,classes\n");
  for (const Card& card : kCards) {
    print_lines<__half>("float16", card);
    print_lines<__nv_bfloat16>("bfloat16", card);
    print_lines<float>("float32", card);
    print_lines<double>("float64", card);
  }
}
