#include "csrc/cpu/sample/sample.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/cpu/base/prefetch.h"
#include "csrc/cpu/sample/blocks.h"

namespace ssc {

namespace scalar {
extern const SampleKernels kSampleKernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const SampleKernels kSampleKernels;
}
namespace avx512 {
extern const SampleKernels kSampleKernels;
}
#endif

const SampleKernels& sample_kernels(Isa isa) {
#if defined(__x86_64__)
  if (vector_isa(isa) == Isa::avx512) return avx512::kSampleKernels;
  if (isa == Isa::avx2) return avx2::kSampleKernels;
#endif
  static_cast<void>(isa);
  return scalar::kSampleKernels;
}

namespace {

constexpr int64_t kBlock = kDrawBlock;

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

}  // namespace

void draw_block(const SampleKernels& kernels, const Proposal& proposal, PhiloxKey key,
                int64_t first, int64_t n, int64_t* ids) {
  uint64_t bits[kBlock];
  kernels.philox(key, static_cast<uint64_t>(first), n, bits);
  switch (proposal.kind) {
    case ProposalKind::uniform:
      return kernels.uniform(bits, n, proposal.num_classes, ids);
    case ProposalKind::log_uniform:
      return kernels.log_uniform(bits, n, proposal.log_uniform, ids);
    case ProposalKind::weighted:
      if (kernels.alias(bits, n, proposal.alias, ids)) return;
      throw std::runtime_error(
          "sample: the alias table is not valid: it holds a class outside [0, " +
          std::to_string(proposal.num_classes) + ")");
  }
}

void probabilities_of(const SampleKernels& kernels, const Proposal& proposal, const int64_t* ids,
                      int64_t n, double* q) {
  switch (proposal.kind) {
    case ProposalKind::uniform:
      return static_cast<void>(std::fill_n(q, n, 1.0 / static_cast<double>(proposal.num_classes)));
    case ProposalKind::log_uniform:
      return kernels.log_uniform_probability(ids, n, proposal.log_uniform, q);
    case ProposalKind::weighted:
      for (int64_t i = 0; i < n; ++i) {
        const auto id = static_cast<uint64_t>(ids[i]);
        q[i] = id < proposal.num_classes ? proposal.probabilities[id] : kNoClass;
      }
  }
}

void prefetch_probabilities(const Proposal& proposal, const int64_t* ids, int64_t n) {
  if (proposal.kind != ProposalKind::weighted) return;
  for (int64_t i = 0; i < n; ++i) {
    const auto id = static_cast<uint64_t>(ids[i]);
    if (id < proposal.num_classes) prefetch_lines(proposal.probabilities + id, 1);
  }
}

void sample_with_replacement(const Proposal& proposal, PhiloxKey key, int64_t num_samples,
                             int64_t* ids, const ParallelFor& parallel_for) {
  const SampleKernels& kernels = sample_kernels(active_isa());
  for_blocks(proposal, num_samples, parallel_for, [&](int64_t first, int64_t n) {
    draw_block(kernels, proposal, key, first, n, ids + first);
  });
}

int64_t first_distinct(const Proposal& proposal, PhiloxKey key, int64_t num_samples, IdSet& seen,
                       int64_t* ids) {
  if (num_samples == 0) return 0;
  const SampleKernels& kernels = sample_kernels(active_isa());
  const double most = most_distinct_draws(proposal.num_classes);
  int64_t found = 0;
  int64_t excluded = 0;
  int64_t drawn[kBlock];
  const int64_t step = std::min(kBlock, (num_samples + 15) / 16 * 16);
  for (int64_t first = 0; static_cast<double>(first) < most; first += step) {
    draw_block(kernels, proposal, key, first, step, drawn);
    for (int64_t i = 0; i < step; ++i) {
      const IdSet::Found there = seen.insert(drawn[i]);
      if (there != IdSet::Found::nothing) {
        excluded += there == IdSet::Found::excluded;
        continue;
      }
      ids[found++] = drawn[i];
      if (found == num_samples) return first + i + 1 - excluded;
    }
  }
  throw std::runtime_error("sample: " + std::to_string(num_samples) +
                           " distinct classes were not found in a thousand draws per class: the"
                           " proposal does not draw its classes by their probabilities");
}

int64_t sample_distinct(const Proposal& proposal, PhiloxKey key, int64_t num_samples,
                        int64_t* ids) {
  IdSet seen(num_samples);
  return first_distinct(proposal, key, num_samples, seen, ids);
}

double race(const Proposal& proposal, PhiloxKey key, int64_t num_samples, const IdSet* excluded,
            Arrival* arrivals, int64_t* ids, const ParallelFor& parallel_for) {
  if (num_samples == 0) return 0.0;
  const SampleKernels& kernels = sample_kernels(active_isa());
  for_blocks(proposal, static_cast<int64_t>(proposal.num_classes), parallel_for,
             [&](int64_t first, int64_t n) {
               uint64_t bits[kBlock];
               int64_t block_ids[kBlock];
               double q[kBlock], times[kBlock];
               for (int64_t i = 0; i < n; ++i) block_ids[i] = first + i;
               kernels.philox(key, static_cast<uint64_t>(first), n, bits);
               probabilities_of(kernels, proposal, block_ids, n, q);
               for (int64_t i = 0; excluded != nullptr && i < n; ++i) {
                 if (excluded->excludes(first + i)) q[i] = 0.0;
               }
               kernels.arrival_time(bits, q, n, times);
               for (int64_t i = 0; i < n; ++i) arrivals[first + i] = {times[i], first + i};
             });
  Arrival* const last = arrivals + num_samples;
  Arrival* const end = arrivals + proposal.num_classes;
  if (last != end) std::nth_element(arrivals, last - 1, end);
  std::sort(arrivals, last);
  for (int64_t i = 0; i < num_samples; ++i) ids[i] = arrivals[i].id;
  return arrivals[num_samples - 1].time;
}

int64_t draws_of_race(double time, int64_t num_samples) {
  const double finite = time < 0x1p62 ? time : 0x1p62;  // infinite, or NaN
  return std::max(num_samples, static_cast<int64_t>(std::ceil(finite)));
}

int64_t sample_race(const Proposal& proposal, PhiloxKey key, int64_t num_samples, int64_t* ids,
                    const ParallelFor& parallel_for) {
  std::vector<Arrival> arrivals(proposal.num_classes);
  return draws_of_race(
      race(proposal, key, num_samples, nullptr, arrivals.data(), ids, parallel_for), num_samples);
}

void log_expected_counts(const Proposal& proposal, const int64_t* ids, int64_t n,
                         const LogCount& count, float* out, const ParallelFor& parallel_for) {
  const SampleKernels& kernels = sample_kernels(active_isa());
  float common = 0.0f;
  if (proposal.kind == ProposalKind::uniform) {
    const double q = 1.0 / static_cast<double>(proposal.num_classes);
    kernels.log_expected_count(&q, 1, count, &common);
  }
  for_blocks(proposal, n, parallel_for, [&](int64_t first, int64_t size) {
    if (proposal.kind == ProposalKind::uniform) {
      for (int64_t i = first; i < first + size; ++i) {
        out[i] = static_cast<uint64_t>(ids[i]) < proposal.num_classes ? common : 0.0f;
      }
      return;
    }
    double q[kBlock];
    probabilities_of(kernels, proposal, ids + first, size, q);
    prefetch_probabilities(proposal, ids + first + size, std::min(kBlock, n - first - size));
    kernels.log_expected_count(q, size, count, out + first);
  });
}

}  // namespace ssc
