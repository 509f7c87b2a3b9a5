#include "csrc/cpu/sample.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/cpu/sample_leaf.h"

namespace ssc {

namespace scalar {
extern const SampleLeaf kSampleLeaf;
}
#if defined(__x86_64__)
namespace avx2 {
extern const SampleLeaf kSampleLeaf;
}
namespace avx512 {
extern const SampleLeaf kSampleLeaf;
}
#endif

const SampleLeaf& sample_leaf(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512 || isa == Isa::avx512_bf16) return avx512::kSampleLeaf;
  if (isa == Isa::avx2) return avx2::kSampleLeaf;
#endif
  static_cast<void>(isa);
  return scalar::kSampleLeaf;
}

namespace {

constexpr int64_t kBlock = 512;  // draws at a time: 4 KiB of bits and 4 KiB of ids

// Blocks below which a second thread costs more than it saves. Draws that wait for memory, a random
// line of the alias table and one of the probabilities each, are worth one sooner: a core has only
// so many reads under way.
int64_t grain_blocks(const Proposal& proposal) {
  constexpr uint64_t kCachedClasses = 1 << 16;
  return proposal.kind == ProposalKind::weighted && proposal.num_classes > kCachedClasses ? 4 : 32;
}

// f(first, n) for blocks of [0, total), blocks starting at multiples of kBlock on every thread.
template <class F>
void for_blocks(const Proposal& proposal, int64_t total, const ParallelFor& parallel_for, F&& f) {
  const int64_t blocks = (total + kBlock - 1) / kBlock;
  parallel_for(blocks, grain_blocks(proposal), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kBlock;
      f(first, std::min(kBlock, total - first));
    }
  });
}

// Draws first .. first + n - 1, n <= kBlock.
void draw_block(const SampleLeaf& leaf, const Proposal& proposal, PhiloxKey key, int64_t first,
                int64_t n, int64_t* ids) {
  uint64_t bits[kBlock];
  leaf.philox(key, static_cast<uint64_t>(first), n, bits);
  switch (proposal.kind) {
    case ProposalKind::uniform:
      return leaf.uniform(bits, n, proposal.num_classes, ids);
    case ProposalKind::log_uniform:
      return leaf.log_uniform(bits, n, proposal.log_uniform, ids);
    case ProposalKind::weighted:
      return leaf.alias(bits, n, proposal.alias, ids);
  }
}

// q of each id, n <= kBlock; kNoClass for ids outside [0, num_classes).
void probabilities_of(const SampleLeaf& leaf, const Proposal& proposal, const int64_t* ids,
                      int64_t n, double* q) {
  switch (proposal.kind) {
    case ProposalKind::uniform:
      return static_cast<void>(std::fill_n(q, n, 1.0 / static_cast<double>(proposal.num_classes)));
    case ProposalKind::log_uniform:
      return leaf.log_uniform_probability(ids, n, proposal.log_uniform, q);
    case ProposalKind::weighted:
      for (int64_t i = 0; i < n; ++i) {
        const auto id = static_cast<uint64_t>(ids[i]);
        q[i] = id < proposal.num_classes ? proposal.probabilities[id] : kNoClass;
      }
  }
}

// Asks for what probabilities_of will read, so that it comes while logarithms are computed.
void prefetch_probabilities(const Proposal& proposal, const int64_t* ids, int64_t n) {
  if (proposal.kind != ProposalKind::weighted) return;
  for (int64_t i = 0; i < n; ++i) {
    const auto id = static_cast<uint64_t>(ids[i]);
    if (id < proposal.num_classes) __builtin_prefetch(proposal.probabilities + id);
  }
}

// The ids seen so far, by open addressing; a quarter full at most, since whether a draw is new
// can't be predicted and a longer search would cost a second mispredicted branch.
class IdSet {
 public:
  explicit IdSet(int64_t max_ids)
      : slots_(std::bit_ceil(4 * static_cast<size_t>(max_ids))),
        shift_(64 - std::countr_zero(slots_.size())) {}

  // False if the set has `id` already.
  bool insert(int64_t id) {
    const uint64_t key = static_cast<uint64_t>(id) + 1;
    size_t slot = (key * 0x9E3779B97F4A7C15u) >> shift_;
    while (slots_[slot] != 0) {
      if (slots_[slot] == key) return false;
      slot = (slot + 1) & (slots_.size() - 1);
    }
    slots_[slot] = key;
    return true;
  }

 private:
  std::vector<uint64_t> slots_;  // 0: empty, else 1 + id
  int shift_;
};

}  // namespace

void sample_with_replacement(const Proposal& proposal, PhiloxKey key, int64_t num_samples,
                             int64_t* ids, const ParallelFor& parallel_for) {
  const SampleLeaf& leaf = sample_leaf(active_isa());
  for_blocks(proposal, num_samples, parallel_for, [&](int64_t first, int64_t n) {
    draw_block(leaf, proposal, key, first, n, ids + first);
  });
}

int64_t sample_distinct(const Proposal& proposal, PhiloxKey key, int64_t num_samples,
                        int64_t* ids) {
  if (num_samples == 0) return 0;
  const SampleLeaf& leaf = sample_leaf(active_isa());
  // Python sends whatever needs more than a few draws per class to the race.
  const double most = 1e6 + 1e3 * static_cast<double>(proposal.num_classes);
  IdSet seen(num_samples);
  int64_t found = 0;
  int64_t drawn[kBlock];
  const int64_t step = std::min(kBlock, (num_samples + 15) / 16 * 16);
  for (int64_t first = 0; static_cast<double>(first) < most; first += step) {
    draw_block(leaf, proposal, key, first, step, drawn);
    for (int64_t i = 0; i < step; ++i) {
      if (!seen.insert(drawn[i])) continue;
      ids[found++] = drawn[i];
      if (found == num_samples) return first + i + 1;
    }
  }
  throw std::runtime_error("sample: " + std::to_string(num_samples) +
                           " distinct classes were not found in a thousand draws per class");
}

int64_t sample_race(const Proposal& proposal, PhiloxKey key, int64_t num_samples, int64_t* ids,
                    const ParallelFor& parallel_for) {
  if (num_samples == 0) return 0;
  struct Arrival {
    double time;
    int64_t id;
    bool operator<(const Arrival& other) const {
      return time != other.time ? time < other.time : id < other.id;
    }
  };
  const SampleLeaf& leaf = sample_leaf(active_isa());
  std::vector<Arrival> arrivals(proposal.num_classes);
  for_blocks(proposal, static_cast<int64_t>(proposal.num_classes), parallel_for,
             [&](int64_t first, int64_t n) {
               uint64_t bits[kBlock];
               int64_t block_ids[kBlock];
               double q[kBlock], times[kBlock];
               for (int64_t i = 0; i < n; ++i) block_ids[i] = first + i;
               leaf.philox(key, static_cast<uint64_t>(first), n, bits);
               probabilities_of(leaf, proposal, block_ids, n, q);
               leaf.arrival_time(bits, q, n, times);
               for (int64_t i = 0; i < n; ++i) arrivals[first + i] = {times[i], first + i};
             });
  const auto last = arrivals.begin() + num_samples;
  if (last != arrivals.end()) std::nth_element(arrivals.begin(), last - 1, arrivals.end());
  std::sort(arrivals.begin(), last);
  for (int64_t i = 0; i < num_samples; ++i) ids[i] = arrivals[i].id;
  const double draws = std::ceil(std::min(arrivals[num_samples - 1].time, 0x1p62));
  return std::max(num_samples, static_cast<int64_t>(draws));
}

void log_expected_counts(const Proposal& proposal, const int64_t* ids, int64_t n,
                         const LogCount& count, float* out, const ParallelFor& parallel_for) {
  const SampleLeaf& leaf = sample_leaf(active_isa());
  float common = 0.0f;
  if (proposal.kind == ProposalKind::uniform) {
    const double q = 1.0 / static_cast<double>(proposal.num_classes);
    leaf.log_expected_count(&q, 1, count, &common);
  }
  for_blocks(proposal, n, parallel_for, [&](int64_t first, int64_t size) {
    if (proposal.kind == ProposalKind::uniform) {
      for (int64_t i = first; i < first + size; ++i) {
        out[i] = static_cast<uint64_t>(ids[i]) < proposal.num_classes ? common : 0.0f;
      }
      return;
    }
    double q[kBlock];
    probabilities_of(leaf, proposal, ids + first, size, q);
    prefetch_probabilities(proposal, ids + first + size, std::min(kBlock, n - first - size));
    leaf.log_expected_count(q, size, count, out + first);
  });
}

}  // namespace ssc
