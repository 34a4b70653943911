// Every way through the kernels again and again: the same bits, by plain launches and by a captured
// graph. One row longer than two tiles and rows beside it, so that every way has several blocks,
// members or parts; few runs on an emulated device.
#include <cstring>

#include "device_test.h"
#include "kernel_case.h"

namespace gkd::cuda::test {
namespace {

class Repeat : public DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped()) return;
    cudaDeviceProp properties;
    ASSERT_EQ(cudaGetDeviceProperties(&properties, 0), cudaSuccess);
    runs = std::strcmp(properties.name, "ptxemu") == 0 ? 4 : 100;
    ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  }
  void TearDown() override {
    if (stream != nullptr) cudaStreamDestroy(stream);
  }
  int runs = 0;
  cudaStream_t stream = nullptr;
};

/// A call whose memory stays where it is.
struct KeptCall {
  Problem p;
  Device device;
  std::size_t classes, bytes;
  Buffer student, teacher, loss, grad_scale, gradient, workspace;

  KeptCall(const Problem& problem, const Way& way)
      : p(problem),
        device(way.device),
        classes(static_cast<std::size_t>(problem.rows * problem.classes)),
        bytes(classes * sizeof(float)),
        student(bytes),
        teacher(bytes),
        loss(sizeof(float)),
        grad_scale(sizeof(float)),
        gradient(bytes),
        workspace(workspace_bytes(problem, way.device)) {
    p.student.data = student.get();
    p.teacher.data = teacher.get();
  }
  void fill(const Case& c) {
    const std::vector<float> s(c.student.begin(), c.student.end());
    const std::vector<float> t(c.teacher.begin(), c.teacher.end());
    student.write(s.data());
    teacher.write(t.data());
  }
  cudaError_t launch(cudaStream_t stream) {
    const Results results{loss.get(), grad_scale.get(), gradient.get()};
    return forward({p, device, stream}, results, workspace.get());
  }
  /// Loss and gradient as they lie in memory.
  std::vector<float> outcome() const {
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    std::vector<float> all = gradient.read<float>(classes);
    all.push_back(loss.read<float>(1)[0]);
    return all;
  }
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST_F(Repeat, RunsGiveTheSameBits) {
  Case c(2, 6150);
  for (const Way& way : ways_of(c.p)) {
    c.p.selection.sort = way.sort;
    KeptCall call(c.p, way);
    call.fill(c);
    ASSERT_EQ(call.launch(stream), cudaSuccess) << way.name;
    const auto first = call.outcome();
    for (int k = 1; k < runs; ++k) {
      ASSERT_EQ(call.launch(stream), cudaSuccess) << way.name;
      ASSERT_TRUE(same_bits(call.outcome(), first)) << way.name << ", run " << k;
    }
  }
}

TEST_F(Repeat, ACapturedGraphReplaysOnOtherLogits) {
  Case c(2, 6150);
  Case other(2, 6150);
  std::reverse(other.teacher.begin(), other.teacher.end());
  for (const Way& way : ways_of(c.p)) {
    c.p.selection.sort = way.sort;
    KeptCall call(c.p, way);
    call.fill(c);
    ASSERT_EQ(call.launch(stream), cudaSuccess) << way.name;
    const auto first = call.outcome();
    call.fill(other);
    ASSERT_EQ(call.launch(stream), cudaSuccess) << way.name;
    const auto second = call.outcome();
    ASSERT_FALSE(same_bits(first, second));

    cudaGraph_t graph;
    cudaGraphExec_t captured;
    ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    ASSERT_EQ(call.launch(stream), cudaSuccess) << way.name;
    ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess) << way.name;
    ASSERT_EQ(cudaGraphInstantiate(&captured, graph, 0), cudaSuccess) << way.name;
    for (int k = 0; k < 2; ++k) {
      call.fill(c);
      ASSERT_EQ(cudaGraphLaunch(captured, stream), cudaSuccess) << way.name;
      EXPECT_TRUE(same_bits(call.outcome(), first)) << way.name;
      call.fill(other);
      ASSERT_EQ(cudaGraphLaunch(captured, stream), cudaSuccess) << way.name;
      EXPECT_TRUE(same_bits(call.outcome(), second)) << way.name;
    }
    cudaGraphExecDestroy(captured);
    cudaGraphDestroy(graph);
  }
}

}  // namespace
}  // namespace gkd::cuda::test
