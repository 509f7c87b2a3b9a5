// Draws of which every row has its own.
#include <algorithm>
#include <tuple>

#include "csrc/ops/cpu/proposal.h"

namespace ssc::ops::cpu {
namespace {

using Drawn = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// Draws below which a second thread costs more than it saves.
constexpr int64_t kGrain = 16 * kDrawBlock;

Drawn sample_rows(Tensor key, Tensor target, int64_t kind, int64_t num_classes,
                  std::optional<Tensor> table, std::optional<Tensor> probability_bits,
                  int64_t num_drawable, int64_t num_samples, int64_t method,
                  std::optional<Tensor> tries, std::optional<Tensor> exclude, bool keep_ids) {
  check_int64(target, "target");
  STD_TORCH_CHECK(target.dim() == 2, "target must be [B, T]");
  const int64_t rows = target.size(0);
  const int64_t targets = target.size(1);
  const RowDraws draws =
      row_draws(key, rows, proposal_of(kind, num_classes, table, probability_bits), num_drawable,
                num_samples, method, tries, exclude);
  const int64_t kept = keep_ids ? num_samples : 0;
  const Tensor ids = empty_cpu({rows, kept}, ScalarType::Long);
  const Tensor num_draws = empty_cpu({keep_ids ? rows : 0}, ScalarType::Long);
  const Tensor log_count = empty_cpu({rows, kept}, ScalarType::Float);
  const Tensor target_log_count = empty_cpu({rows, targets}, ScalarType::Float);
  const auto* target_ids = static_cast<const int64_t*>(target.const_data_ptr());
  auto* out = static_cast<int64_t*>(ids.mutable_data_ptr());
  auto* taken = static_cast<int64_t*>(num_draws.mutable_data_ptr());
  auto* counts = static_cast<float*>(log_count.mutable_data_ptr());
  auto* target_counts = static_cast<float*>(target_log_count.mutable_data_ptr());
  const int64_t work = method == kRace ? static_cast<int64_t>(draws.proposal.num_classes)
                                       : std::max<int64_t>(kept + targets, 1);
  torch_parallel_for()(rows, std::max<int64_t>(kGrain / work, 1), [&](int64_t begin, int64_t end) {
    RowSampler sampler(draws);
    for (int64_t row = begin; row < end; ++row) {
      if (keep_ids) {
        taken[row] = sampler.draw(row, out + row * num_samples);
        sampler.log_counts(out + row * num_samples, num_samples, counts + row * num_samples);
      } else {
        sampler.enter(row);
      }
      sampler.log_counts(target_ids + row * targets, targets, target_counts + row * targets);
    }
  });
  return {ids, num_draws, log_count, target_log_count};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sampled_softmax, CPU, m) {
  m.impl("sample_rows", TORCH_BOX(&sample_rows));
}

}  // namespace ssc::ops::cpu
