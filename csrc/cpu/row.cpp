// The row kernels of one instruction set.
#include "cpu/row.h"

#include "cpu/row_kernel.h"
#include "cpu/scale.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

template <class T>
RowResult run_row(const RowTask& task, const Executor& each, Scratch* scratch) {
  return RowKernel<T>(task, each, scratch).run();
}

}  // namespace

Kernels kernels() { return {&run_row<float>, &run_row<double>, &scale_row}; }

}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
