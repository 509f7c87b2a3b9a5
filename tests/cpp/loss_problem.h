// Random problems for the loss and its gradients, and the answers by loops in double that a reader
// can check against the formula. Values are multiples of 1/256 with eight significant bits, so
// every dtype holds them exactly, and errors come from the kernels alone; float32 that is to be
// multiplied in two parts has twice as many bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "csrc/cpu/loss/loss.h"
#include "tests/cpp/loss_cases.h"

namespace ssc::test {

constexpr int64_t kIgnore = -100;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

inline uint16_t float16_bits(double value) {  // of a value that float16 holds exactly
  if (value == 0) return 0;
  const uint16_t sign = value < 0 ? 0x8000 : 0;
  int exponent = 0;
  const double fraction = std::frexp(std::abs(value), &exponent);  // in [0.5, 1)
  const auto mantissa = static_cast<uint16_t>(std::ldexp(fraction, 11));
  return static_cast<uint16_t>(sign | (exponent + 14) << 10 | (mantissa & 0x3ff));
}

inline double from_float16(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, fraction = bits & 0x3ff;
  if (exponent == 31) return fraction != 0 ? std::nan("") : (bits >> 15 != 0 ? -1 : 1) * kInfinity;
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return bits >> 15 != 0 ? -magnitude : magnitude;
}

// A matrix in some dtype. Its memory ends with its last element, and the elements between its rows
// are NaN, so that reading too much is caught by the sanitizer or shows in the numbers.
class Matrix {
 public:
  Matrix(int64_t rows, int64_t columns, int64_t stride, DType dtype)
      : rows_(rows), columns_(columns), stride_(stride), dtype_(dtype) {
    const int64_t count = rows == 0 ? 0 : (rows - 1) * stride + columns;
    bytes_ = std::make_unique<char[]>(static_cast<size_t>(count * element_size(dtype)));
    std::memset(bytes_.get(), 0xff, static_cast<size_t>(count * element_size(dtype)));
  }

  MatrixView view() const { return {bytes_.get(), stride_, dtype_}; }
  Vector vector() const { return {bytes_.get(), dtype_}; }
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }

  double at(int64_t i, int64_t j) const {
    const char* p = bytes_.get() + (i * stride_ + j) * element_size(dtype_);
    if (dtype_ == DType::f64) return read<double>(p);
    if (dtype_ == DType::f32) return read<float>(p);
    if (dtype_ == DType::f16) return from_float16(read<uint16_t>(p));
    const uint32_t bits = uint32_t{read<uint16_t>(p)} << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }

  void set(int64_t i, int64_t j, double value) {
    char* p = bytes_.get() + (i * stride_ + j) * element_size(dtype_);
    if (dtype_ == DType::f64) return write(p, value);
    const auto single = static_cast<float>(value);
    if (dtype_ == DType::f32) return write(p, single);
    if (dtype_ == DType::f16) return write(p, float16_bits(value));
    uint32_t bits;
    std::memcpy(&bits, &single, sizeof bits);
    write(p, static_cast<uint16_t>(bits >> 16));
  }

  void fill(double value) {
    for (int64_t i = 0; i < rows_; ++i)
      for (int64_t j = 0; j < columns_; ++j) set(i, j, value);
  }

  // The bytes of the elements (not those between rows), to compare results bit for bit.
  std::string elements() const {
    std::string out;
    for (int64_t i = 0; i < rows_; ++i) {
      out.append(bytes_.get() + i * stride_ * element_size(dtype_),
                 static_cast<size_t>(columns_ * element_size(dtype_)));
    }
    return out;
  }

 private:
  template <class V>
  static V read(const char* p) {
    V value;
    std::memcpy(&value, p, sizeof value);
    return value;
  }
  template <class V>
  static void write(char* p, V value) {
    std::memcpy(p, &value, sizeof value);
  }

  int64_t rows_, columns_, stride_;
  DType dtype_;
  std::unique_ptr<char[]> bytes_;
};

// Sums, and what they would be if no term were negative: how much rounding the terms may cost.
struct Sums {
  std::vector<double> value, size;

  void resize(int64_t count) {
    value.resize(static_cast<size_t>(count));
    size.resize(static_cast<size_t>(count));
  }
  void add(int64_t i, double term) {
    value[static_cast<size_t>(i)] += term;
    size[static_cast<size_t>(i)] += std::abs(term);
  }
};

// Per-row answers and gradients, all in double.
struct Answers {
  std::vector<double> loss, lse, target_logit, error;  // [batch]
  std::vector<double> margin;                          // |z_t − max z_s|: how sure `error` is
  Sums grad_input, grad_weight, grad_bias;             // [batch, dim], [classes, dim], [classes]
};

// Owns the arrays of a LossProblem.
struct RandomProblem {
  explicit RandomProblem(const Options& o)
      : options(o),
        input(o.batch, o.dim, o.dim + o.padding, o.input),
        weight(o.classes, o.dim, o.dim + o.padding, o.weight),
        bias(1, o.classes, o.classes, o.weight) {
    std::mt19937_64 random(o.seed);
    const auto eighth_bits = [&] { return (static_cast<double>(random() % 257) - 128) / 256; };
    const auto pick = [&](int64_t n) {
      return static_cast<int64_t>(random() % static_cast<uint64_t>(n));
    };
    const auto element = [&](DType dtype) {
      const bool more_bits = dtype == DType::f32 && o.products == Products::tf32;
      return eighth_bits() + (more_bits ? eighth_bits() / 256 : 0);
    };
    for (int64_t i = 0; i < o.batch; ++i)
      for (int64_t d = 0; d < o.dim; ++d) input.set(i, d, element(o.input));
    for (int64_t c = 0; c < o.classes; ++c) {
      for (int64_t d = 0; d < o.dim; ++d) weight.set(c, d, element(o.weight));
      bias.set(0, c, eighth_bits() * o.spread);
    }
    for (int64_t s = 0; s < o.samples; ++s) {
      ids.push_back(pick(o.classes));
      log_count.push_back(static_cast<float>(eighth_bits() * 4 - 1));
    }
    for (int64_t i = 0; i < o.batch; ++i) {
      const bool hit = i % 3 == 0 && o.samples > 0;  // a third of the targets are in the sample
      target.push_back(hit ? ids[static_cast<size_t>(pick(o.samples))] : pick(o.classes));
      if (o.ignore_some && i % 5 == 4) target.back() = kIgnore;
      target_log_count.push_back(static_cast<float>(eighth_bits() * 4 - 1));
      row_scale.push_back(static_cast<float>(eighth_bits()));
    }
  }

  LossProblem problem() const {
    LossProblem p{};
    p.input = input.view();
    p.weight = weight.view();
    p.bias = options.bias ? bias.vector() : Vector{nullptr, DType::f32};
    p.target = target.data();
    p.target_log_expected_count = {options.log_counts ? target_log_count.data() : nullptr,
                                   DType::f32};
    p.batch = options.batch;
    p.dim = options.dim;
    p.classes = options.classes;
    p.inv_temperature = options.inv_temperature;
    p.products = options.products;
    return p;
  }

  SamplePlan plan(Workspace& workspace) const {
    return plan_samples(ids.data(), options.samples,
                        options.log_counts ? log_count.data() : nullptr, DType::f32, target.data(),
                        options.batch, options.classes, kIgnore, options.remove_hits, workspace);
  }

  // (h_row · W_c + b_c) / tau
  double logit(int64_t row, int64_t c) const {
    double sum = options.bias ? bias.at(0, c) : 0;
    for (int64_t d = 0; d < options.dim; ++d) sum += input.at(row, d) * weight.at(c, d);
    return sum * options.inv_temperature;
  }

  // How far a logit may be off because its factors are multiplied in parts: 2^-15 of |h| |w|.
  double logit_error() const {
    const bool float32 = options.input == DType::f32 || options.weight == DType::f32;
    if (!float32 || options.products != Products::tf32 || !in_bf16(options)) return 0;
    return std::ldexp(largest_norm(input) * largest_norm(weight), -15) * options.inv_temperature;
  }

  enum class Samples { drawn, all_classes };
  Answers rows(Samples samples = Samples::drawn) const { return answer(samples, false); }
  Answers gradients() const { return answer(Samples::drawn, true); }

  Options options;
  Matrix input, weight, bias;
  std::vector<int64_t> ids, target;
  std::vector<float> log_count, target_log_count, row_scale;

 private:
  static double largest_norm(const Matrix& matrix) {
    double most = 0;
    for (int64_t i = 0; i < matrix.rows(); ++i) {
      double squares = 0;
      for (int64_t d = 0; d < matrix.columns(); ++d) squares += matrix.at(i, d) * matrix.at(i, d);
      most = std::max(most, std::sqrt(squares));
    }
    return most;
  }

  Answers answer(Samples from, bool with_gradients) const;
};

// The formulas at the top of csrc/cpu/loss/loss.h, sample by sample, duplicates and all. With
// Samples::all_classes, the exact loss: every class but the target is a sample, no corrections.
inline Answers RandomProblem::answer(Samples from, bool with_gradients) const {
  const Options& o = options;
  const bool all_classes = from == Samples::all_classes;
  Answers a;
  a.grad_input.resize(o.batch * o.dim);
  a.grad_weight.resize(o.classes * o.dim);
  a.grad_bias.resize(o.classes);
  const int64_t samples = all_classes ? o.classes : o.samples;
  for (int64_t i = 0; i < o.batch; ++i) {
    const int64_t t = target[static_cast<size_t>(i)];
    if (t == kIgnore) {
      for (auto* v : {&a.loss, &a.lse, &a.target_logit, &a.error}) v->push_back(0);
      a.margin.push_back(kInfinity);
      continue;
    }
    const bool counts = o.log_counts && !all_classes;
    const double z_t = logit(i, t) - (counts ? target_log_count[static_cast<size_t>(i)] : 0);
    std::vector<std::pair<int64_t, double>> z;  // (class, z_s)
    double most = -kInfinity;
    for (int64_t s = 0; s < samples; ++s) {
      const int64_t c = all_classes ? s : ids[static_cast<size_t>(s)];
      if (c == t && (all_classes || o.remove_hits)) continue;
      z.emplace_back(c, logit(i, c) - (counts ? log_count[static_cast<size_t>(s)] : 0));
      most = std::max(most, z.back().second);
    }
    const double reference = std::max(z_t, most);
    double sum = std::exp(z_t - reference);
    for (const auto& [c, z_s] : z) sum += std::exp(z_s - reference);
    const double lse = reference + std::log(sum);
    a.loss.push_back(lse - z_t);
    a.lse.push_back(lse);
    a.target_logit.push_back(z_t);
    a.error.push_back(z_t < most ? 1 : 0);
    a.margin.push_back(std::abs(z_t - most));

    if (!with_gradients) continue;
    z.emplace_back(t, z_t);
    for (size_t k = 0; k < z.size(); ++k) {
      const double p = std::exp(z[k].second - lse) - (k + 1 == z.size() ? 1 : 0);
      const double g = row_scale[static_cast<size_t>(i)] * o.inv_temperature * p;
      const int64_t c = z[k].first;
      a.grad_bias.add(c, g);
      for (int64_t d = 0; d < o.dim; ++d) {
        a.grad_input.add(i * o.dim + d, g * weight.at(c, d));
        a.grad_weight.add(c * o.dim + d, g * input.at(i, d));
      }
    }
  }
  return a;
}

// A parallel-for over kPieces threads, whatever the grain: uneven pieces, one perhaps empty.
template <int kPieces>
ParallelFor threads() {
  return {[](int64_t n, int64_t, ParallelFor::Body body, void* context) {
            std::vector<std::thread> running;
            int64_t begin = 0;
            for (int k = 0; k < kPieces; ++k) {
              const int64_t end = k + 1 == kPieces ? n : std::min(n, begin + n / kPieces + k % 2);
              if (begin < end) running.emplace_back([=] { body(context, begin, end); });
              begin = std::max(begin, end);
            }
            for (std::thread& thread : running) thread.join();
          },
          kPieces};
}

}  // namespace ssc::test
