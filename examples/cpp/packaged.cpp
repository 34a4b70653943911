// Runs models that hold torch.ops.gkd.loss and were saved from Python by package.py: a TorchScript
// module, or a package that AOTInductor compiled. Linking gkd::gkd is what registers the operator.
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/script.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace {

std::vector<at::Tensor> read_inputs(const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes(std::istreambuf_iterator<char>(file), {});
  TORCH_CHECK(!bytes.empty(), "cannot read ", path);
  const auto inputs = torch::jit::pickle_load(bytes).toGenericDict();
  std::vector<at::Tensor> tensors;
  for (const char* name : {"features", "teacher", "target"}) {
    tensors.push_back(inputs.at(name).toTensor());
  }
  return tensors;
}

at::Tensor run_script(const std::string& path, const std::vector<at::Tensor>& inputs) {
  auto module = torch::jit::load(path);
  return module.forward({inputs.begin(), inputs.end()}).toTensor();
}

at::Tensor run_package(const std::string& path, const std::vector<at::Tensor>& inputs) {
  torch::inductor::AOTIModelPackageLoader package(path);
  return package.run(inputs).at(0);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr,
                 "usage: packaged INPUTS.pt MODEL...\n"
                 "  MODEL: *.pt2 of AOTInductor, any other of TorchScript\n");
    return 2;
  }
  try {
    const auto inputs = read_inputs(argv[1]);
    const c10::InferenceMode no_gradient;
    for (int i = 2; i < argc; ++i) {
      const std::string path = argv[i];
      const bool compiled = path.size() > 4 && path.compare(path.size() - 4, 4, ".pt2") == 0;
      const auto loss = compiled ? run_package(path, inputs) : run_script(path, inputs);
      std::printf("%s %.9g\n", compiled ? "package" : "script", loss.item<double>());
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "packaged: %s\n", error.what());
    return 1;
  }
}
