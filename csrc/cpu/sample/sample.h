// Draws of class ids from a proposal, and their log expected counts. Every draw is a pure function
// of (key, proposal, number of samples): neither the number of threads nor the instruction set
// changes it.
#pragma once

#include <cstdint>

#include "csrc/core/alias_table.h"
#include "csrc/core/log_uniform.h"
#include "csrc/core/logit_correction.h"
#include "csrc/core/philox.h"
#include "csrc/cpu/base/parallel.h"

namespace ssc {

enum class ProposalKind { uniform, log_uniform, weighted };

// The distribution that ids are drawn from; only the fields of its kind are set.
struct Proposal {
  ProposalKind kind;
  uint64_t num_classes;
  LogUniform log_uniform;       // log_uniform
  AliasTable alias;             // weighted
  const double* probabilities;  // weighted: [num_classes]
};

// ids [num_samples]: draw i of the key is sample i.
void sample_with_replacement(const Proposal& proposal, PhiloxKey key, int64_t num_samples,
                             int64_t* ids, const ParallelFor& parallel_for);

// ids [num_samples]: the first distinct ids of the same stream, in the order of the draws. Returns
// how many draws that took. No work or memory grows with num_classes. The caller sees to it that
// there are num_samples classes to find; throws std::runtime_error after absurdly many draws.
int64_t sample_distinct(const Proposal& proposal, PhiloxKey key, int64_t num_samples, int64_t* ids);

// The same distribution as sample_distinct by an exponential race (logit_correction.h), O(C)
// whatever the number of draws would have been. Class k takes the bits of draw k. Returns what
// stands for the number of draws: the time of the last arrival, when classes arrive at rate 1.
int64_t sample_race(const Proposal& proposal, PhiloxKey key, int64_t num_samples, int64_t* ids,
                    const ParallelFor& parallel_for);

// log n of each id; 0 for an id outside [0, num_classes) (a row to be ignored), and count.log_zero
// for a class that is never drawn.
void log_expected_counts(const Proposal& proposal, const int64_t* ids, int64_t n,
                         const LogCount& count, float* out, const ParallelFor& parallel_for);

}  // namespace ssc
