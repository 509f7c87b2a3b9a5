// Arguments of the draws, checked the same on every device.
#pragma once

#include <optional>

#include "csrc/core/log_uniform.h"
#include "csrc/ops/checks.h"

namespace ssc::ops {

// How samples are drawn; the numbers are those of Method in sampled_softmax_cuda/proposals.py.
enum Method : int64_t { kWithReplacement = 0, kDistinct = 1, kRace = 2 };

inline void check_draw(const Tensor& key, const Tensor& target, int64_t num_samples, int64_t method,
                       uint64_t num_classes) {
  check_int64(key, "key");
  check_int64(target, "target");
  STD_TORCH_CHECK(key.numel() == 2, "key must hold (seed, offset)");
  STD_TORCH_CHECK(num_samples >= 0 && num_samples < (int64_t{1} << 31),
                  "num_samples must be in [0, 2^31)");
  STD_TORCH_CHECK(method == kWithReplacement || static_cast<uint64_t>(num_samples) <= num_classes,
                  "num_samples must not exceed the number of classes");
}

// The kinds of proposals; the numbers are those of Kind in sampled_softmax_cuda/proposals.py.
enum Kind : int64_t { kUniform = 0, kLogUniform = 1, kWeighted = 2 };

// A proposal as it arrives. num_classes is for the kinds without a table.
struct ProposalArguments {
  int64_t kind, num_classes;
  const std::optional<Tensor>& table;
  const std::optional<Tensor>& probability_bits;
};

inline void check_kind(const ProposalArguments& p) {
  STD_TORCH_CHECK(p.kind == kUniform || p.kind == kLogUniform || p.kind == kWeighted,
                  "kind must be 0, 1 or 2");
  STD_TORCH_CHECK(p.kind != kWeighted || (p.table.has_value() && p.probability_bits.has_value()),
                  "a weighted proposal needs table and probability_bits");
}

// Draws for the whole batch leave nothing out.
inline void check_shared(const std::optional<Tensor>& exclude, bool keep_ids) {
  STD_TORCH_CHECK(!exclude.has_value() && keep_ids,
                  "exclude and keep_ids=False are for draws of single rows");
}

// The arguments of rows with draws of their own, beside a proposal.
inline void check_row_draws(const Tensor& key, int64_t rows, int64_t num_samples, int64_t method,
                            const std::optional<Tensor>& tries,
                            const std::optional<Tensor>& exclude, uint64_t num_classes) {
  check_draw(key, key, num_samples, method, num_classes);
  STD_TORCH_CHECK(method >= kWithReplacement && method <= kRace, "method must be 0, 1 or 2");
  STD_TORCH_CHECK(
      !tries.has_value() || (tries->scalar_type() == ScalarType::Double && tries->numel() == 1),
      "tries must be one float64 number");
  if (!exclude.has_value()) return;
  check_int64(*exclude, "exclude");
  STD_TORCH_CHECK(exclude->dim() == 2 && exclude->size(0) == rows, "exclude must be [B=", rows,
                  ", E]");
}

// The number of classes of each proposal.

inline uint64_t uniform_classes(int64_t num_classes) {
  STD_TORCH_CHECK(num_classes > 0, "num_classes must be positive");
  return static_cast<uint64_t>(num_classes);
}

inline uint64_t log_uniform_classes(int64_t num_classes) {
  const auto classes = static_cast<uint64_t>(num_classes);
  STD_TORCH_CHECK(num_classes > 0 && classes <= kLogUniformMaxClasses,
                  "num_classes must be in [1, 2^52)");
  return classes;
}

inline uint64_t weighted_classes(const Tensor& table, const Tensor& probability_bits) {
  check_int64(table, "table");
  check_int64(probability_bits, "probability_bits");
  STD_TORCH_CHECK(table.numel() > 0 && table.numel() == probability_bits.numel(),
                  "table and probability_bits must be [C], C > 0");
  return static_cast<uint64_t>(table.numel());
}

}  // namespace ssc::ops
