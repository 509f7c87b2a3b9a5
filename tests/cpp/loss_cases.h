// The options of random problems, and the cases that losses and gradients are both checked on.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "csrc/cpu/loss/table.h"

namespace ssc::test {

inline const char* dtype_name(DType dtype) {
  constexpr const char* kNames[] = {"f32", "f64", "bf16", "f16"};
  return kNames[static_cast<int>(dtype)];
}

struct Options {
  int64_t batch, dim, classes, samples;
  DType input = DType::f32, weight = DType::f32;
  Products products = Products::ieee;
  bool bias = true;
  bool log_counts = true;  // of samples and targets
  bool remove_hits = true;
  bool ignore_some = true;  // every fifth row
  int64_t padding = 3;      // elements between rows
  double inv_temperature = 1;
  double spread = 1;  // scale of the biases: large ones make exp's reference point move
  uint64_t seed = 1;

  std::string text() const {
    return "B=" + std::to_string(batch) + " D=" + std::to_string(dim) +
           " C=" + std::to_string(classes) + " S=" + std::to_string(samples) + " " +
           dtype_name(input) + "/" + dtype_name(weight) +
           (products == Products::bf16   ? " in bf16"
            : products == Products::tf32 ? " in parts"
                                         : "") +
           (bias ? "" : " no bias") + (log_counts ? "" : " no counts") +
           (remove_hits ? "" : " hits kept") + " 1/tau=" + std::to_string(inv_temperature) +
           " spread=" + std::to_string(spread);
  }
};

// Whether the matmuls multiply bf16, so that E is rounded to it.
inline bool in_bf16(const Options& o) {
  return kernels_isa(active_isa(), o.input, o.weight, o.products) > Isa::avx512;
}

// Types of parameters, and of float32 both ways in which it may be multiplied.
struct Kind {
  DType dtype;
  Products products = Products::ieee;
};
constexpr Kind kRounded = {DType::f32, Products::bf16};
constexpr Kind kInParts = {DType::f32, Products::tf32};

// The same problem with parameters of that kind.
inline Options of_kind(const Kind& kind, Options options) {
  options.input = options.weight = kind.dtype;
  options.products = kind.products;
  return options;
}

// (1, 1, 1): the smallest; the others are one more or less than multiples of every vector, panel
// and tile; (3, 4097) has rows so long that the samples need several tiles.
inline std::vector<Options> shapes_and_dtypes() {
  constexpr int64_t kShapes[][4] = {// B, D, C, S
                                    {1, 1, 1, 1},       {1, 1, 2, 1},       {2, 3, 50, 7},
                                    {7, 33, 129, 65},   {31, 17, 9, 64},    {64, 64, 256, 32},
                                    {53, 123, 507, 97}, {3, 4097, 300, 200}};
  std::vector<Options> cases;
  for (const auto& [batch, dim, classes, samples] : kShapes) {
    for (const Kind& kind : {Kind{DType::f32}, Kind{DType::f64}, Kind{DType::bf16},
                             Kind{DType::f16}, kRounded, kInParts}) {
      cases.push_back(
          of_kind(kind, {.batch = batch, .dim = dim, .classes = classes, .samples = samples}));
    }
  }
  return cases;
}

inline std::vector<Options> mixed_dtypes() {
  std::vector<Options> cases;
  for (const DType input : {DType::f32, DType::bf16, DType::f16}) {
    for (const DType weight : {DType::f32, DType::bf16, DType::f16}) {
      for (const Products products : {Products::ieee, Products::tf32, Products::bf16}) {
        cases.push_back({.batch = 9,
                         .dim = 35,
                         .classes = 70,
                         .samples = 40,
                         .input = input,
                         .weight = weight,
                         .products = products});
      }
    }
  }
  return cases;
}

inline std::vector<Options> all_options() {
  std::vector<Options> cases;
  for (const Kind& kind : {Kind{DType::f32}, Kind{DType::bf16}, kRounded, kInParts}) {
    for (int bits = 0; bits < 16; ++bits) {
      cases.push_back(of_kind(kind, {.batch = 12,
                                     .dim = 19,
                                     .classes = 30,
                                     .samples = 25,
                                     .bias = (bits & 1) != 0,
                                     .log_counts = (bits & 2) != 0,
                                     .remove_hits = (bits & 4) != 0,
                                     .ignore_some = (bits & 8) != 0,
                                     .padding = bits % 4,
                                     .inv_temperature = 0.25 * (1 + bits),
                                     .seed = static_cast<uint64_t>(bits)}));
    }
  }
  return cases;
}

inline std::vector<Options> all_duplicates() {
  return {{.batch = 10, .dim = 8, .classes = 2, .samples = 200},
          {.batch = 10, .dim = 8, .classes = 3, .samples = 100, .remove_hits = false}};
}

// Biases that move exp's reference point, up to where it underflows.
inline std::vector<Options> distant_logits() {
  std::vector<Options> cases;
  for (const double spread : {200., 2000., 2e5}) {
    for (const Kind& kind :
         {Kind{DType::f32}, Kind{DType::f64}, Kind{DType::bf16}, kRounded, kInParts}) {
      cases.push_back(
          of_kind(kind, {.batch = 20, .dim = 5, .classes = 300, .samples = 150, .spread = spread}));
    }
  }
  return cases;
}

inline void check_each(const std::vector<Options>& cases, void (*check)(const Options&)) {
  for (const Options& options : cases) check(options);
}

}  // namespace ssc::test
