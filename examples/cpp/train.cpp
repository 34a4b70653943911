// Distils a recogniser of glyphs with gkd::loss, without Python. Data: examples/glyphs/export.py.
#include <gkd/gkd.h>
#include <torch/torch.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace {

constexpr const char* kHelp = R"(usage: train --data FILE [options]
Distils a small recogniser with Grouped Knowledge Distillation. FILE is written by
  python -m examples.glyphs.export --out FILE
Prints the loss of every epoch and the accuracy on faces that nobody trained on. The exit status is
1 if the recogniser did not learn: less than ten times what guessing reaches.

  --epochs N   passes over the photographs (16)
  --batch N    photographs a step (64)
  --rate X     the largest learning rate (0.02)
  --weight X   of gkd::loss beside the cross-entropy (0.3)
  --no-labels  learn from the teacher alone: gkd::loss without a cross-entropy
  --seed N     of the weights and the order (0)
  --threads N  of the CPU (1: the recogniser is too small for more)
)";

struct Settings {
  std::string data;
  std::int64_t epochs = 16, batch = 64, seed = 0, threads = 1;
  double rate = 0.02, weight = 0.3;
  bool labels = true;
};

constexpr double kScale = 32, kMargin = 0.2;  // of the cosines in the cross-entropy (CosFace)
constexpr double kDistillationScale = 64;     // of the cosines that are distilled

Settings parse(int argc, char** argv) {
  Settings s;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--no-labels") {
      s.labels = false;
      continue;
    }
    TORCH_CHECK_VALUE(i + 1 < argc, name, " needs a value, or is not an option: see --help");
    const std::string value = argv[++i];
    if (name == "--data")
      s.data = value;
    else if (name == "--epochs")
      s.epochs = std::stoll(value);
    else if (name == "--batch")
      s.batch = std::stoll(value);
    else if (name == "--rate")
      s.rate = std::stod(value);
    else if (name == "--weight")
      s.weight = std::stod(value);
    else if (name == "--seed")
      s.seed = std::stoll(value);
    else if (name == "--threads")
      s.threads = std::stoll(value);
    else
      TORCH_CHECK_VALUE(false, name, " is not an option: see --help");
  }
  TORCH_CHECK_VALUE(!s.data.empty(), "--data FILE is needed: see --help");
  TORCH_CHECK_VALUE(s.epochs > 0 && s.batch > 1, "--epochs must be 1 and --batch 2 at least");
  return s;
}

struct Data {
  at::Tensor images, labels, teacher_embeddings, teacher_prototypes, test_images, test_labels;
};

Data load(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes(std::istreambuf_iterator<char>(file), {});
  TORCH_CHECK(!bytes.empty(), "cannot read ", path);
  const auto tensors = torch::pickle_load(bytes).toGenericDict();
  const auto get = [&](const char* name) { return tensors.at(name).toTensor(); };
  return {
      get("images"),      get("labels"),     get("teacher_embeddings"), get("teacher_prototypes"),
      get("test_images"), get("test_labels")};
}

at::Tensor to_float(const at::Tensor& bytes) { return bytes.to(torch::kFloat) / 127.5 - 1; }

/// Image to unit embedding, and the cosine head of face recognition.
struct RecogniserImpl : torch::nn::Module {
  RecogniserImpl(std::int64_t classes, std::int64_t side, std::int64_t embedding = 64) {
    const auto convolution = [](std::int64_t in, std::int64_t out) {
      return torch::nn::Conv2d(
          torch::nn::Conv2dOptions(in, out, 3).stride(2).padding(1).bias(false));
    };
    const std::int64_t last = (side + 7) / 8;  // three strides of 2, rounded up
    body = register_module(
        "body",
        torch::nn::Sequential(convolution(1, 16), torch::nn::BatchNorm2d(16), torch::nn::ReLU(),
                              convolution(16, 32), torch::nn::BatchNorm2d(32), torch::nn::ReLU(),
                              convolution(32, 64), torch::nn::BatchNorm2d(64), torch::nn::ReLU(),
                              torch::nn::Flatten(), torch::nn::Linear(64 * last * last, embedding),
                              torch::nn::BatchNorm1d(embedding)));
    head = register_parameter("head", torch::randn({classes, embedding}));
  }

  /// [B, classes], each in [-1, 1].
  at::Tensor forward(const at::Tensor& images) {
    const auto unit = torch::nn::functional::NormalizeFuncOptions().dim(1);
    namespace F = torch::nn::functional;
    return F::linear(F::normalize(body->forward(images), unit), F::normalize(head, unit));
  }

  torch::nn::Sequential body{nullptr};
  at::Tensor head;
};
TORCH_MODULE(Recogniser);

at::Tensor margin_loss(const at::Tensor& cosines, const at::Tensor& labels) {
  const auto own = torch::one_hot(labels, cosines.size(1));
  return torch::cross_entropy_loss((cosines - kMargin * own) * kScale, labels);
}

double accuracy(Recogniser& model, const at::Tensor& images, const at::Tensor& labels) {
  const torch::NoGradGuard no_grad;
  model->eval();
  return model->forward(to_float(images))
      .argmax(1)
      .eq(labels)
      .to(torch::kDouble)
      .mean()
      .item<double>();
}

/// The mean loss of one epoch, in random order; the learning rate falls to 0 over all of them.
double train_epoch(Recogniser& model, torch::optim::AdamW& optimiser, const Data& data,
                   std::int64_t epoch, const Settings& s) {
  model->train();
  const std::int64_t count = data.labels.size(0), view = epoch % data.images.size(0);
  const double steps = s.epochs * ((count + s.batch - 1) / s.batch);
  const auto batches = torch::randperm(count).split(s.batch);
  double sum = 0;
  for (std::size_t step = 0; step < batches.size(); ++step) {
    const double left = 1 - (epoch * static_cast<double>(batches.size()) + step) / steps;
    for (auto& group : optimiser.param_groups()) group.options().set_lr(s.rate * left);
    const auto index = batches[step];
    if (index.size(0) < 2) continue;  // batch statistics need two
    const auto target = data.labels.index_select(0, index);
    const auto cosines = model->forward(to_float(data.images[view].index_select(0, index)));
    const auto teacher = torch::mm(data.teacher_embeddings[view].index_select(0, index),
                                   data.teacher_prototypes.t());
    gkd::LossOptions options;
    options.rank_by = "student";
    auto loss = s.weight * gkd::loss(cosines * kDistillationScale, teacher * kDistillationScale,
                                     target, options);
    if (s.labels) loss = loss + margin_loss(cosines, target);
    optimiser.zero_grad();
    loss.backward();
    optimiser.step();
    sum += loss.item<double>() / static_cast<double>(batches.size());
  }
  return sum;
}

int run(const Settings& s) {
  torch::set_num_threads(static_cast<int>(s.threads));
  torch::manual_seed(s.seed);
  const Data data = load(s.data);
  const std::int64_t classes = data.teacher_prototypes.size(0);
  Recogniser model(classes, data.images.size(-1));
  torch::optim::AdamW optimiser(model->parameters(), torch::optim::AdamWOptions(s.rate));
  for (std::int64_t epoch = 0; epoch < s.epochs; ++epoch) {
    const double loss = train_epoch(model, optimiser, data, epoch, s);
    std::printf("epoch %2ld  loss %.4f\n", static_cast<long>(epoch + 1), loss);
    std::fflush(stdout);
  }
  const double reached = accuracy(model, data.test_images, data.test_labels);
  const double guessing = 1.0 / static_cast<double>(classes);
  std::printf("accuracy %.1f%% of %ld test photographs (guessing: %.1f%%)\n", 100 * reached,
              static_cast<long>(data.test_labels.size(0)), 100 * guessing);
  if (reached >= 10 * guessing) return 0;
  std::fprintf(stderr, "train: the recogniser did not learn\n");
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (!std::strcmp(argv[i], "--help")) {
      std::fputs(kHelp, stdout);
      return 0;
    }
  }
  try {
    return run(parse(argc, argv));
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "train: %s\n", error.what_without_backtrace());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "train: %s\n", error.what());
  }
  return 2;
}
