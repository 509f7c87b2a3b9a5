// Draws without replacement by an exponential race (csrc/core/logit_correction.h), for samples that
// would take more than a few draws per class: exactly csrc/cpu/sample.h's sample_race, in steps of
// which the second is the caller's, who has a library to sort with:
//
//   arrival_times   the time at which each class arrives first
//   stable sort     by rising time (race_sort.h); the classes of the first S are the ids, in order
//   race_draws      the number of draws, from the S-th time
#pragma once

#include "csrc/cuda/proposal.h"

namespace ssc::cuda {

// times [C], infinite where q = 0, and classes [C] = 0, 1, ..., for the sort; both aligned to 16
// bytes.
template <class Proposal>
cudaError_t arrival_times(const Proposal& proposal, const int64_t* key, double* times,
                          int64_t* classes, cudaStream_t stream);

// num_draws [1], from the time [1] of the last of S > 0 arrivals, both in device memory.
cudaError_t race_draws(const double* time, int64_t num_samples, int64_t* num_draws,
                       cudaStream_t stream);

}  // namespace ssc::cuda
