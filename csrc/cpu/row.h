// One row on the CPU: selection, summary, loss and gradient, over contiguous float or double
// logits.
//
// No torch here: this file's implementation is compiled once per instruction set and reached
// through a table of function pointers.
#pragma once

#include <cstdint>
#include <vector>

#include "math/cut.h"
#include "math/loss.h"

namespace gkd::cpu {

/// How the group of a row is chosen.
struct Selection {
  double threshold = 0.93;  ///< used when group_size < 0
  std::int64_t group_size = -1;
  bool by_student = false;
  bool sort = false;  ///< sort the row instead of binning it
};

/// Working memory of one thread, grown once and reused from row to row.
struct Scratch {
  std::vector<std::uint64_t> mass;
  std::vector<double> keys;
};

/// What one row yields besides its gradient.
struct RowResult {
  double loss = 0, primary = 0, secondary = 0;
  RowSummary summary;
  double cut = 0;         ///< smallest ranking logit in the group, +inf when empty
  std::int64_t size = 0;  ///< classes in the primary group
};

/// `gradient` may be null; its entries are multiplied by `gradient_scale`. `target` < 0: none.
template <class T>
using RowFunction = RowResult (*)(const T* student, const T* teacher, std::int64_t classes,
                                  std::int64_t target, const Selection&, const Weights&,
                                  T gradient_scale, T* gradient, Scratch*);

/// The kernels of one instruction set.
struct Kernels {
  RowFunction<float> single;
  RowFunction<double> wide;
};

namespace DEFAULT {
Kernels kernels();
}
namespace AVX2 {
Kernels kernels();
}
namespace AVX512 {
Kernels kernels();
}

/// The best kernels that this processor runs.
const Kernels& kernels();

}  // namespace gkd::cpu
