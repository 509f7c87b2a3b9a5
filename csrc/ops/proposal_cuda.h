// Proposals on the GPU from an operator's arguments, and draws of rows from them.
#pragma once

#include <optional>
#include <utility>
#include <variant>

#include "csrc/cuda/per_row.h"
#include "csrc/cuda/sample.h"
#include "csrc/ops/cuda_device.h"
#include "csrc/ops/sample_arguments.h"

namespace ssc::ops {

inline cuda::WeightedProposal weighted_proposal(const Tensor& table, const Tensor& probability_bits,
                                                const OnDevice& device) {
  const uint64_t classes = weighted_classes(table, probability_bits);
  device.check_here(table, "table");
  device.check_here(probability_bits, "probability_bits");
  const auto* entries = static_cast<const uint64_t*>(table.const_data_ptr());
  return {make_alias_table(entries, classes),
          static_cast<const double*>(probability_bits.const_data_ptr())};
}

// Kernels draw rows' own samples with replacement; Python has the reference for the others.
inline void check_drawn_by_key(int64_t method, const std::optional<Tensor>& exclude) {
  STD_TORCH_CHECK(method == kWithReplacement && !exclude.has_value(),
                  "the CUDA kernels draw rows' own samples with replacement and without exclude");
}

// Draws with replacement for rows. Borrows from the tensors.
class RowDrawer {
 public:
  RowDrawer(const OnDevice& device, const Tensor& key, int64_t kind, int64_t num_classes,
            const std::optional<Tensor>& table, const std::optional<Tensor>& probability_bits)
      : proposal_(make(device, kind, num_classes, table, probability_bits)) {
    check_int64(key, "key");
    device.check_here(key, "key");
    key_ = static_cast<const int64_t*>(key.const_data_ptr());
  }

  uint64_t num_classes() const {
    return std::visit([](const auto& proposal) { return cuda::num_classes(proposal); }, proposal_);
  }

  // See cuda::draw_rows.
  void draw(int64_t first_row, int64_t rows, int64_t samples, int64_t* ids, float* log_count,
            cudaStream_t stream) const {
    std::visit(
        [&](const auto& proposal) {
          check_launch(
              cuda::draw_rows(proposal, key_, first_row, rows, samples, ids, log_count, stream),
              "draw_rows");
        },
        proposal_);
  }

  // log n of any ids.
  void log_counts(const int64_t* ids, int64_t count, int64_t samples, float* out,
                  cudaStream_t stream) const {
    const LogCount counts = log_count_with_replacement(static_cast<uint64_t>(samples));
    std::visit(
        [&](const auto& proposal) {
          check_launch(
              cuda::log_expected_counts(proposal, counts, nullptr, ids, count, out, stream),
              "log_expected_counts");
        },
        proposal_);
  }

 private:
  using Proposal =
      std::variant<cuda::UniformProposal, cuda::LogUniformProposal, cuda::WeightedProposal>;

  static Proposal make(const OnDevice& device, int64_t kind, int64_t num_classes,
                       const std::optional<Tensor>& table,
                       const std::optional<Tensor>& probability_bits) {
    check_kind(kind, table, probability_bits);
    if (kind == kUniform) return cuda::UniformProposal{uniform_classes(num_classes)};
    if (kind == kLogUniform) return cuda::log_uniform_proposal(log_uniform_classes(num_classes));
    return weighted_proposal(*table, *probability_bits, device);
  }

  Proposal proposal_;
  const int64_t* key_ = nullptr;
};

}  // namespace ssc::ops
