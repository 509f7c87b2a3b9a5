// The arguments that describe a proposal, as csrc/cpu takes them.
#pragma once

#include <optional>

#include "csrc/cpu/sample/rows.h"
#include "csrc/ops/proposal.h"

namespace ssc::ops::cpu {

inline Proposal uniform_proposal(int64_t num_classes) {
  return {ProposalKind::uniform, uniform_classes(num_classes), {}, {}, nullptr};
}

inline Proposal log_uniform_proposal(int64_t num_classes) {
  const uint64_t classes = log_uniform_classes(num_classes);
  return {ProposalKind::log_uniform, classes, make_log_uniform(classes), {}, nullptr};
}

// table, probability_bits [C] int64: the alias table, and the bits of the float64 probabilities.
inline Proposal weighted_proposal(const Tensor& table, const Tensor& probability_bits) {
  const uint64_t classes = weighted_classes(table, probability_bits);
  const auto* entries = static_cast<const uint64_t*>(table.const_data_ptr());
  return {ProposalKind::weighted,
          classes,
          {},
          make_alias_table(entries, classes),
          static_cast<const double*>(probability_bits.const_data_ptr())};
}

inline Proposal proposal_of(const ProposalArguments& p) {
  check_kind(p);
  if (p.kind == kUniform) return uniform_proposal(p.num_classes);
  if (p.kind == kLogUniform) return log_uniform_proposal(p.num_classes);
  return weighted_proposal(*p.table, *p.probability_bits);
}

// The draws of `rows` rows, which borrow from the tensors. exclude: [rows, E] or none.
inline RowDraws row_draws(const Tensor& key, int64_t rows, const Proposal& proposal,
                          int64_t num_drawable, int64_t num_samples, int64_t method,
                          const std::optional<Tensor>& tries,
                          const std::optional<Tensor>& exclude) {
  check_row_draws(key, rows, num_samples, method, tries, exclude, proposal.num_classes);
  const auto* words = static_cast<const uint64_t*>(key.const_data_ptr());
  const auto* t = tries.has_value() ? static_cast<const double*>(tries->const_data_ptr()) : nullptr;
  const auto* list =
      exclude.has_value() ? static_cast<const int64_t*>(exclude->const_data_ptr()) : nullptr;
  return {proposal,
          {words[0], words[1]},
          num_samples,
          static_cast<DrawMethod>(method),
          t,
          list,
          exclude.has_value() ? exclude->size(1) : 0,
          static_cast<uint64_t>(num_drawable)};
}

}  // namespace ssc::ops::cpu
