// The draws: ids, and the log expected counts of the ids and of the targets, in one call (small
// draws would be all call overhead otherwise).
#include "csrc/cpu/sample/sample.h"

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

Draw sample_uniform(Tensor key, Tensor target, int64_t num_classes, int64_t num_samples,
                    int64_t method, std::optional<Tensor> tries) {
  return draw(uniform_proposal(num_classes), key, target, num_samples, method, tries);
}

Draw sample_log_uniform(Tensor key, Tensor target, int64_t num_classes, int64_t num_samples,
                        int64_t method, std::optional<Tensor> tries) {
  return draw(log_uniform_proposal(num_classes), key, target, num_samples, method, tries);
}

Draw sample_alias(Tensor key, Tensor target, Tensor table, Tensor probability_bits,
                  int64_t num_samples, int64_t method, std::optional<Tensor> tries) {
  return draw(weighted_proposal(table, probability_bits), key, target, num_samples, method, tries);
}

Tensor log_count_uniform(Tensor ids, int64_t num_classes, int64_t num_samples,
                         std::optional<Tensor> tries) {
  check_int64(ids, "ids");
  return log_counts(uniform_proposal(num_classes), ids, log_count(num_samples, tries));
}

Tensor log_count_log_uniform(Tensor ids, int64_t num_classes, int64_t num_samples,
                             std::optional<Tensor> tries) {
  check_int64(ids, "ids");
  return log_counts(log_uniform_proposal(num_classes), ids, log_count(num_samples, tries));
}

Tensor log_count_weighted(Tensor ids, Tensor probability_bits, int64_t num_samples,
                          std::optional<Tensor> tries) {
  check_int64(ids, "ids");
  const Tensor& no_table = probability_bits;  // only draws look into the table
  return log_counts(weighted_proposal(no_table, probability_bits), ids,
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
  m.impl("sample_uniform", TORCH_BOX(&sample_uniform));
  m.impl("sample_log_uniform", TORCH_BOX(&sample_log_uniform));
  m.impl("sample_alias", TORCH_BOX(&sample_alias));
  m.impl("log_count_uniform", TORCH_BOX(&log_count_uniform));
  m.impl("log_count_log_uniform", TORCH_BOX(&log_count_log_uniform));
  m.impl("log_count_weighted", TORCH_BOX(&log_count_weighted));
  m.impl("build_alias_table", TORCH_BOX(&alias_table));
}

}  // namespace ssc::ops::cpu
