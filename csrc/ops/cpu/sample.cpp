// The draws: ids, and the log expected counts of the ids and of the targets, in one call (small
// draws would be all call overhead otherwise).
#include "csrc/cpu/sample/sample.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "csrc/cpu/base/huge_pages.h"
#include "csrc/cpu/sample/alias_table.h"
#include "csrc/ops/cpu/proposal.h"
#include "csrc/ops/proposal.h"

namespace ssc::ops::cpu {
namespace {

using Draw = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// A contiguous tensor of the shape of `ids`.
Tensor empty_like_ids(const Tensor& ids, ScalarType dtype) {
  const auto sizes = ids.sizes();
  return empty_cpu(sizes.data(), static_cast<int64_t>(sizes.size()), dtype);
}

// tries: one float64, the t of logit_correction.h; none: S draws with replacement.
LogCount log_count(int64_t num_samples, const std::optional<Tensor>& tries) {
  if (!tries.has_value()) return log_count_with_replacement(static_cast<uint64_t>(num_samples));
  STD_TORCH_CHECK(tries->scalar_type() == ScalarType::Double && tries->numel() == 1,
                  "tries must be one float64 number");
  return log_count_distinct(*static_cast<const double*>(tries->const_data_ptr()));
}

Tensor log_counts(const Proposal& proposal, const Tensor& ids, const LogCount& count) {
  const Tensor out = empty_like_ids(ids, ScalarType::Float);
  log_expected_counts(proposal, static_cast<const int64_t*>(ids.const_data_ptr()), ids.numel(),
                      count, static_cast<float*>(out.mutable_data_ptr()), torch_parallel_for());
  return out;
}

Draw draw(const Proposal& proposal, const Tensor& key, const Tensor& target, int64_t num_samples,
          int64_t method, const std::optional<Tensor>& tries) {
  check_draw(key, target, num_samples, method, proposal.num_classes);
  const auto* words = static_cast<const uint64_t*>(key.const_data_ptr());
  const PhiloxKey philox_key{words[0], words[1]};
  const Tensor ids = empty_cpu({num_samples}, ScalarType::Long);
  const Tensor num_draws = empty_cpu({}, ScalarType::Long);
  auto* out = static_cast<int64_t*>(ids.mutable_data_ptr());
  int64_t draws = num_samples;
  if (method == kWithReplacement) {
    sample_with_replacement(proposal, philox_key, num_samples, out, torch_parallel_for());
  } else if (method == kDistinct) {
    draws = sample_distinct(proposal, philox_key, num_samples, out);
  } else {
    draws = sample_race(proposal, philox_key, num_samples, out, torch_parallel_for());
  }
  *static_cast<int64_t*>(num_draws.mutable_data_ptr()) = draws;
  const LogCount count = method == kWithReplacement || tries.has_value()
                             ? log_count(num_samples, tries)
                             : log_count_distinct(static_cast<double>(draws));
  const LogCount correction = as_correction(count);
  return {ids, num_draws, log_counts(proposal, ids, correction),
          log_counts(proposal, target, correction)};
}

// Draws of single rows below which a second thread costs more than it saves.
constexpr int64_t kGrain = 16 * kDrawBlock;

// The draws that every row has of its own.
Draw draw_rows(const Proposal& proposal, const Tensor& key, const Tensor& target,
               int64_t num_drawable, int64_t num_samples, int64_t method,
               const std::optional<Tensor>& tries, const std::optional<Tensor>& exclude,
               bool keep_ids) {
  check_int64(target, "target");
  STD_TORCH_CHECK(target.dim() == 2, "target must be [B, T]");
  const int64_t rows = target.size(0);
  const int64_t targets = target.size(1);
  const RowDraws draws =
      row_draws(key, rows, proposal, num_drawable, num_samples, method, tries, exclude);
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

Draw sample(const Tensor& key, const Tensor& target, int64_t kind, int64_t num_classes,
            const std::optional<Tensor>& table, const std::optional<Tensor>& probability_bits,
            int64_t num_drawable, int64_t num_samples, int64_t method,
            const std::optional<Tensor>& tries, const std::optional<Tensor>& exclude, bool per_row,
            bool keep_ids) {
  const Proposal proposal = proposal_of({kind, num_classes, table, probability_bits});
  if (per_row) {
    return draw_rows(proposal, key, target, num_drawable, num_samples, method, tries, exclude,
                     keep_ids);
  }
  check_shared(exclude, keep_ids);
  return draw(proposal, key, target, num_samples, method, tries);
}

Tensor log_counts_of_ids(const Tensor& ids, int64_t kind, int64_t num_classes,
                         const std::optional<Tensor>& table,
                         const std::optional<Tensor>& probability_bits, int64_t /*num_drawable*/,
                         int64_t num_samples, const std::optional<Tensor>& tries) {
  check_int64(ids, "ids");
  return log_counts(proposal_of({kind, num_classes, table, probability_bits}), ids,
                    log_count(num_samples, tries));
}

Tensor alias_table(Tensor probabilities) {
  STD_TORCH_CHECK(probabilities.scalar_type() == ScalarType::Double &&
                      probabilities.is_contiguous() && probabilities.numel() > 0,
                  "probabilities must be a contiguous float64 tensor [C], C > 0");
  const Tensor table = empty_like_ids(probabilities, ScalarType::Long);
  advise_huge_pages(table.data_ptr(), static_cast<size_t>(table.numel()) * sizeof(int64_t));
  Workspace workspace;
  build_alias_table(static_cast<const double*>(probabilities.const_data_ptr()),
                    static_cast<uint64_t>(probabilities.numel()),
                    static_cast<uint64_t*>(table.mutable_data_ptr()), workspace,
                    torch_parallel_for());
  return table;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sampled_softmax, CPU, m) {
  m.impl("sample", TORCH_BOX(&sample));
  m.impl("log_counts", TORCH_BOX(&log_counts_of_ids));
  m.impl("build_alias_table", TORCH_BOX(&alias_table));
}

}  // namespace ssc::ops::cpu
