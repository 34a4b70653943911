// What a fuzzer's bytes mean: numbers read one after the other. Past the end a generator goes on
// from where the bytes left it, so that a small file can stand for a long row.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

namespace gkd::fuzz {

/// Ends the program, as libFuzzer expects of a failure.
inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}

  std::uint8_t byte() {
    if (left_ == 0) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      return static_cast<std::uint8_t>(state_ >> 56);
    }
    --left_;
    state_ = (state_ ^ *data_) * 1099511628211u;
    return *data_++;
  }
  bool flag() { return byte() & 1; }
  /// One of 0, ..., n - 1.
  std::int64_t pick(std::int64_t n) {
    const std::uint64_t low = byte();
    return static_cast<std::int64_t>((n <= 256 ? low : low << 8 | byte()) %
                                     static_cast<std::uint64_t>(n));
  }
  template <class T, std::size_t n>
  T of(const T (&choices)[n]) {
    return choices[byte() % n];
  }
  template <class T>
  T bits() {
    std::uint8_t raw[sizeof(T)];
    for (auto& part : raw) part = byte();
    T value;
    std::memcpy(&value, raw, sizeof(T));
    return value;
  }

  /// Sizes around a pack (16), a block (512) and, rarely, a segment (16,384).
  std::int64_t classes() {
    const int kind = byte();
    if (kind == 0) return 16384 + pick(1024) - 512;
    return 1 + (kind < 16 ? pick(1200) : pick(70));
  }

 private:
  const std::uint8_t* data_;
  std::size_t left_;
  std::uint64_t state_ = 14695981039346656037u;
};

/// How the logits of a row are drawn.
class Logits {
 public:
  explicit Logits(Bytes* bytes)
      : bytes_(bytes), kind_(bytes->byte() % 8), scale_(bytes->of({0.0f, 1e-3f, 1.0f, 30.0f})) {}

  double next() {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    switch (kind_) {
      case 0:  // ties
        return bytes_->byte() % 4;
      case 1:  // anything at all
        return bytes_->bits<float>();
      case 2:
        return bytes_->bits<double>();
      case 3:
        return bytes_->of({0.0, -0.0, 1e-45, -1e-310, 65504.0, 1e30, -3e38, -kInfinity});
      case 4:  // the same, and now and then what makes a row invalid
        return bytes_->byte() < 3 ? bytes_->of({std::nan(""), kInfinity, -std::nan("")})
                                  : bytes_->byte() / 64.0;
      case 5:
        return bytes_->byte() < 64 ? -kInfinity : small();
      default:
        return small();
    }
  }

 private:
  double small() { return scale_ * (bytes_->bits<std::uint16_t>() / 8192.0 - 4); }

  Bytes* bytes_;
  int kind_;
  float scale_;
};

}  // namespace gkd::fuzz
