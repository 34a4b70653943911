// Tests that need a CUDA device, real or emulated.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

namespace gkd::cuda::test {

class DeviceTest : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "no CUDA device";
    }
  }
};

}  // namespace gkd::cuda::test
