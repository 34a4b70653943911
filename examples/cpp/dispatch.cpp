// Calls gkd::loss by its name, as a program does that never heard of gkd's header. Linking gkd::gkd
// is what registers the operator. Reads a file of package.py, prints the loss and the sum of the
// absolute gradient.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: dispatch INPUTS.pt\n");
    return 2;
  }
  try {
    std::ifstream file(argv[1], std::ios::binary);
    const std::vector<char> bytes(std::istreambuf_iterator<char>(file), {});
    TORCH_CHECK(!bytes.empty(), "cannot read ", argv[1]);
    const auto inputs = torch::jit::pickle_load(bytes).toGenericDict();
    const at::Tensor student = inputs.at("student").toTensor().requires_grad_();

    const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("gkd::loss", "");
    torch::jit::Stack stack{student, inputs.at("teacher"), inputs.at("target")};
    // The settings have defaults, and the schema knows them.
    const auto& arguments = op.schema().arguments();
    for (std::size_t i = stack.size(); i < arguments.size(); ++i) {
      stack.push_back(arguments[i].default_value().value());
    }
    op.callBoxed(stack);
    const at::Tensor loss = stack.at(0).toTensor();
    loss.backward();
    std::printf("loss %.9g\ngradient %.9g\n", loss.item<double>(),
                student.grad().to(at::kDouble).abs().sum().item<double>());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "dispatch: %s\n", error.what());
    return 1;
  }
}
