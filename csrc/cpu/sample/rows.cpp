#include "csrc/cpu/sample/rows.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace ssc {

RowSampler::RowSampler(const RowDraws& draws)
    : draws_(draws),
      kernels_(sample_kernels(active_isa())),
      count_(
          as_correction(draws.method == DrawMethod::with_replacement
                            ? log_count_with_replacement(static_cast<uint64_t>(draws.num_samples))
                            : log_count_distinct(draws.tries == nullptr ? 0.0 : *draws.tries))) {
  const bool distinct = draws.method == DrawMethod::distinct;
  if (distinct || draws.num_excluded > 0) {
    seen_.emplace(draws.num_excluded + (distinct ? draws.num_samples : 0));
  }
  if (draws.method == DrawMethod::race) {
    arrivals_ = workspace_.take<Arrival>(static_cast<int64_t>(draws.proposal.num_classes));
  }
}

int64_t RowSampler::draw(int64_t row, int64_t* ids) {
  exclude_row(row);
  const PhiloxKey key = row_key(draws_.key, row);
  int64_t taken = draws_.num_samples;
  if (draws_.method == DrawMethod::with_replacement) {
    draw_replaced(key, ids);
  } else if (draws_.method == DrawMethod::distinct) {
    taken = first_distinct(draws_.proposal, key, draws_.num_samples, *seen_, ids);
  } else {
    const IdSet* excluded = seen_.has_value() ? &*seen_ : nullptr;
    const double time =
        race(draws_.proposal, key, draws_.num_samples, excluded, arrivals_, ids, serial());
    taken = draws_of_race(time * left_, draws_.num_samples);
  }
  if (count_.distinct && draws_.tries == nullptr) {
    count_ = as_correction(log_count_distinct(static_cast<double>(taken)));
  }
  return taken;
}

void RowSampler::enter(int64_t row) {
  if (!count_.distinct || draws_.tries != nullptr) {
    exclude_row(row);
    return;
  }
  if (spare_ids_ == nullptr) spare_ids_ = workspace_.take<int64_t>(draws_.num_samples);
  draw(row, spare_ids_);
}

void RowSampler::exclude_row(int64_t row) {
  if (seen_.has_value()) seen_->clear();
  if (draws_.num_excluded == 0) return;
  const Proposal& proposal = draws_.proposal;
  const int64_t* list = draws_.exclude + row * draws_.num_excluded;
  uint64_t lost = 0;
  double mass = 0.0;
  for (int64_t j = 0; j < draws_.num_excluded; ++j) {
    if (static_cast<uint64_t>(list[j]) >= proposal.num_classes) continue;
    if (seen_->exclude(list[j]) != IdSet::Found::nothing) continue;
    double q;
    probabilities_of(kernels_, proposal, list + j, 1, &q);
    mass += q;
    lost += q > 0.0;
  }
  const bool distinct = draws_.method != DrawMethod::with_replacement;
  const uint64_t needed = distinct ? static_cast<uint64_t>(draws_.num_samples) : 1;
  if (draws_.num_samples > 0 && draws_.num_drawable < lost + needed) {
    throw std::runtime_error(
        "sample: exclude leaves row " + std::to_string(row) + " only " +
        std::to_string(draws_.num_drawable - std::min(lost, draws_.num_drawable)) +
        " classes of positive probability, " + std::to_string(needed) + " are needed");
  }
  left_ = 1.0 - (mass < 1.0 ? mass : 1.0);  // NaN excludes everything
  if (draws_.num_samples > 0 && left_ < (distinct ? kLeastLeftDistinct : kLeastLeft)) {
    throw std::runtime_error("sample: exclude leaves row " + std::to_string(row) +
                             " too little of the proposal's probability");
  }
}

void RowSampler::draw_replaced(PhiloxKey key, int64_t* ids) {
  const bool all = draws_.num_excluded == 0;
  const double most = most_draws(draws_.num_samples, left_);
  int64_t drawn[kDrawBlock];
  int64_t found = 0;
  for (int64_t first = 0; found < draws_.num_samples; first += kDrawBlock) {
    if (!all && static_cast<double>(first) > most) {
      throw std::runtime_error("sample: of " + std::to_string(first) + " draws only " +
                               std::to_string(found) +
                               " were not excluded: the proposal does not draw its classes by their"
                               " probabilities");
    }
    const int64_t wanted = std::min(kDrawBlock, draws_.num_samples - found);
    draw_block(kernels_, draws_.proposal, key, first, all ? wanted : kDrawBlock,
               all ? ids + first : drawn);
    if (all) {
      found += wanted;
      continue;
    }
    for (int64_t i = 0; i < kDrawBlock && found < draws_.num_samples; ++i) {
      if (!seen_->excludes(drawn[i])) ids[found++] = drawn[i];
    }
  }
}

void RowSampler::log_counts(const int64_t* ids, int64_t n, float* out) const {
  const Proposal& proposal = draws_.proposal;
  double q[kDrawBlock];
  if (proposal.kind == ProposalKind::uniform) {  // one logarithm serves all
    q[0] = std::min(1.0 / static_cast<double>(proposal.num_classes) / left_, 1.0);
    float common;
    kernels_.log_expected_count(q, 1, count_, &common);
    for (int64_t i = 0; i < n; ++i) {
      out[i] = static_cast<uint64_t>(ids[i]) < proposal.num_classes ? common : 0.0f;
    }
    return;
  }
  for (int64_t first = 0; first < n; first += kDrawBlock) {
    const int64_t size = std::min(kDrawBlock, n - first);
    probabilities_of(kernels_, proposal, ids + first, size, q);
    if (left_ != 1.0) {
      for (int64_t i = 0; i < size; ++i) q[i] = q[i] < 0.0 ? q[i] : std::min(q[i] / left_, 1.0);
    }
    prefetch_probabilities(proposal, ids + first + size, std::min(kDrawBlock, n - first - size));
    kernels_.log_expected_count(q, size, count_, out + first);
  }
}

}  // namespace ssc
