// The parts of draws that the batch shares (sample/sample.cpp) and of draws of single rows
// (sample/rows.cpp).
#pragma once

#include <cstdint>

#include "csrc/core/rejection.h"
#include "csrc/cpu/sample/id_set.h"
#include "csrc/cpu/sample/sample.h"
#include "csrc/cpu/sample/table.h"

namespace ssc {

constexpr int64_t kDrawBlock = 512;  // draws at a time: 4 KiB of bits and 4 KiB of ids

// Draws first .. first + n - 1 of the key's stream; first even, n <= kDrawBlock. All are classes:
// throws std::runtime_error if the alias table holds anything else.
void draw_block(const SampleKernels& kernels, const Proposal& proposal, PhiloxKey key,
                int64_t first, int64_t n, int64_t* ids);

// q of each id, n <= kDrawBlock; kNoClass for ids outside [0, num_classes).
void probabilities_of(const SampleKernels& kernels, const Proposal& proposal, const int64_t* ids,
                      int64_t n, double* q);

// Asks for what probabilities_of will read, so that it comes while logarithms are computed.
void prefetch_probabilities(const Proposal& proposal, const int64_t* ids, int64_t n);

// ids [num_samples]: the first ids of the stream that are not in `seen`, which takes them in. So
// they are distinct, and what it excludes is not among them. Returns how many draws that took, not
// counting those excluded.
int64_t first_distinct(const Proposal& proposal, PhiloxKey key, int64_t num_samples, IdSet& seen,
                       int64_t* ids);

struct Arrival {
  double time;
  int64_t id;
  bool operator<(const Arrival& other) const {
    return time != other.time ? time < other.time : id < other.id;
  }
};

// ids [num_samples]: the classes that arrive first in the exponential race (logit_correction.h), of
// those that are not excluded (null: none is). Returns when the last of them does. arrivals:
// [num_classes] scratch.
double race(const Proposal& proposal, PhiloxKey key, int64_t num_samples, const IdSet* excluded,
            Arrival* arrivals, int64_t* ids, const ParallelFor& parallel_for);

// Stands for the number of draws of a race whose last arrival is at `time` when all classes
// together arrive at rate 1.
int64_t draws_of_race(double time, int64_t num_samples);

}  // namespace ssc
