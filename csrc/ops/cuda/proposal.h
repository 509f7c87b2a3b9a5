// Proposals on the GPU from an operator's arguments, and draws of rows from them.
#pragma once

#include <optional>
#include <utility>
#include <variant>

#include "csrc/cuda/sample/sample.h"
#include "csrc/ops/cuda/device.h"
#include "csrc/ops/cuda/race.h"
#include "csrc/ops/proposal.h"

namespace ssc::ops::cuda {

inline ssc::cuda::WeightedProposal weighted_proposal(const Tensor& table,
                                                     const Tensor& probability_bits,
                                                     const OnDevice& device) {
  const uint64_t classes = weighted_classes(table, probability_bits);
  device.check_here(table, "table");
  device.check_here(probability_bits, "probability_bits");
  const auto* entries = static_cast<const uint64_t*>(table.const_data_ptr());
  return {make_alias_table(entries, classes),
          static_cast<const double*>(probability_bits.const_data_ptr())};
}

using Proposal = std::variant<ssc::cuda::UniformProposal, ssc::cuda::LogUniformProposal,
                              ssc::cuda::WeightedProposal>;

inline Proposal proposal_of(const OnDevice& device, const ProposalArguments& p) {
  check_kind(p);
  if (p.kind == kUniform) return ssc::cuda::UniformProposal{uniform_classes(p.num_classes)};
  if (p.kind == kLogUniform) {
    return ssc::cuda::log_uniform_proposal(log_uniform_classes(p.num_classes));
  }
  return weighted_proposal(*p.table, *p.probability_bits, device);
}

inline uint64_t num_classes(const Proposal& proposal) {
  return std::visit([](const auto& p) { return ssc::cuda::num_classes(p); }, proposal);
}

// The arguments of rows' draws beside the proposal, checked. Borrows from the tensors.
struct RowDraws {
  RowDraws(const OnDevice& device, const Tensor& key, int64_t rows, int64_t num_drawable,
           int64_t num_samples, int64_t method, const std::optional<Tensor>& tries,
           const std::optional<Tensor>& exclude, uint64_t num_classes)
      : samples(num_samples),
        filtered(method != kWithReplacement || exclude.has_value()),
        filter{method != kWithReplacement,
               static_cast<double>(__builtin_nan("")),
               nullptr,
               nullptr,
               0,
               static_cast<uint64_t>(num_drawable),
               method == kRace} {
    check_row_draws(key, rows, num_samples, method, tries, exclude, num_classes);
    device.check_here(key, "key");
    this->key = static_cast<const int64_t*>(key.const_data_ptr());
    if (tries.has_value()) {
      const auto* number = static_cast<const double*>(tries->const_data_ptr());
      if (device.host_can_read(*tries)) {
        filter.tries = *number;
      } else {
        device.check_here(*tries, "tries");
        filter.device_tries = number;
      }
    }
    if (!exclude.has_value()) return;
    device.check_here(*exclude, "exclude");
    filter.exclude = static_cast<const int64_t*>(exclude->const_data_ptr());
    filter.num_excluded = exclude->size(1);
  }

  int64_t samples;
  bool filtered;  // not every draw will do
  ssc::cuda::RowFilter filter;
  const int64_t* key = nullptr;
};

// Draws for rows, a chunk at a time. Borrows from the tensors of the arguments.
class RowDrawer {
 public:
  RowDrawer(const OnDevice& device, const ProposalArguments& proposal)
      : proposal_(proposal_of(device, proposal)) {}

  uint64_t num_classes() const { return cuda::num_classes(proposal_); }

  // To be called before the first draw: of chunks of up to `most_rows` rows.
  void prepare(const OnDevice& device, const RowDraws& draws, int64_t most_rows) {
    draws_ = draws;
    if (!draws.filtered) return;
    blocks_ = ssc::cuda::filtered_rows_blocks(draws.filter, draws.samples, most_rows, kTableBytes);
    tables_ = device.empty({ssc::cuda::filtered_rows_bytes(draws.filter, draws.samples, blocks_)},
                           ScalarType::Byte);
    if (draws.filter.race) {
      races_.emplace(device, static_cast<int64_t>(num_classes()), most_rows);
    }
  }

  // Draws for `rows` rows from first_row on, to `out`, whose pointers are to the first of them.
  void draw(int64_t first_row, int64_t rows, const ssc::cuda::RowOutputs& out,
            cudaStream_t stream) {
    std::visit(
        [&](const auto& proposal) {
          if (draws_->filtered) {
            draw_filtered(proposal, first_row, rows, out, stream);
          } else {
            draw_all(proposal, first_row, rows, out, stream);
          }
        },
        proposal_);
  }

 private:
  static constexpr int64_t kTableBytes = int64_t{32} << 20;

  // Every draw of a row's stream is a sample.
  template <class T>
  void draw_all(const T& proposal, int64_t first_row, int64_t rows,
                const ssc::cuda::RowOutputs& out, cudaStream_t stream) const {
    const RowDraws& d = *draws_;
    if (out.ids != nullptr) {
      check_launch(ssc::cuda::draw_rows(proposal, d.key, first_row, rows, d.samples, out.ids,
                                        out.log_count, stream),
                   "draw_rows");
    }
    const LogCount counts =
        as_correction(log_count_with_replacement(static_cast<uint64_t>(d.samples)));
    check_launch(
        ssc::cuda::log_expected_counts(proposal, counts, nullptr, out.targets,
                                       rows * out.num_targets, out.target_log_count, stream),
        "log_expected_counts");
  }

  template <class T>
  void draw_filtered(const T& proposal, int64_t first_row, int64_t rows,
                     const ssc::cuda::RowOutputs& out, cudaStream_t stream) {
    const RowDraws& d = *draws_;
    const bool drawn = out.ids != nullptr || d.filter.counts_draws();
    const int64_t step = races_.has_value() && drawn ? races_->rows() : rows;
    for (int64_t done = 0; done < rows; done += step) {
      const int64_t first = first_row + done, some = std::min(step, rows - done);
      ssc::cuda::RowFilter filter = d.filter;
      if (filter.exclude != nullptr) filter.exclude += first * filter.num_excluded;
      if (races_.has_value() && drawn) {
        races_->run(proposal, d.key, first, some, filter.exclude, filter.num_excluded, stream);
        filter.arrival_times = races_->sorted_times();
        filter.arrivals = races_->arrivals();
      }
      check_launch(ssc::cuda::draw_filtered_rows(proposal, d.key, filter, first, some, d.samples,
                                                 out.from(done, d.samples), tables_->data_ptr(),
                                                 blocks_, stream),
                   "draw_filtered_rows");
    }
  }

  Proposal proposal_;
  std::optional<RowDraws> draws_;
  std::optional<Tensor> tables_;
  std::optional<Races> races_;
  int64_t blocks_ = 0;
};

}  // namespace ssc::ops::cuda
