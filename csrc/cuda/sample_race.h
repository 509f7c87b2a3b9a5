// Draws without replacement by an exponential race (csrc/core/logit_correction.h), for samples that
// would take more than a few draws per class: exactly csrc/cpu/sample.h's race. A batch of rows
// has a race of its own for each, in steps of which the third is the caller's, who has a library to
// sort with:
//
//   arrival_times   the time at which each class arrives first in each row
//   bar_classes     those on a row's list never arrive
//   stable sort     by rising time (race_sort.h); the classes of the first S are the ids, in order
//   first_arrivals  the ids of one race, and the number of draws, from the S-th time; those of
//                   rows are taken by draw_filtered_rows (draw_filtered_rows.h)
//
// All arrays are [rows][race_stride(C)].
#pragma once

#include "csrc/cuda/proposal.h"

namespace ssc::cuda {

// Rows begin at multiples of 16 bytes.
__host__ __device__ constexpr int64_t race_stride(int64_t num_classes) {
  return num_classes + num_classes % 2;
}

// The row whose draws are the key's own, of no row.
constexpr int64_t kSharedDraws = -1;

// What stands for the number of draws: the time of the last of the samples.
__device__ __forceinline__ int64_t draws_of_race(double time, int64_t num_samples) {
  const auto whole = static_cast<int64_t>(ceil(time < 0x1p62 ? time : 0x1p62));
  return whole > num_samples ? whole : num_samples;
}

// times, infinite where q = 0, and classes 0, 1, ... for the sort, of rows from first_row on; both
// aligned to 16 bytes.
template <class Proposal>
cudaError_t arrival_times(const Proposal& proposal, const int64_t* key, int64_t first_row,
                          int64_t rows, double* times, int64_t* classes, cudaStream_t stream);

// exclude [rows][num_excluded]; ids outside [0, num_classes) bar nothing.
cudaError_t bar_classes(const int64_t* exclude, int64_t rows, int64_t num_excluded,
                        int64_t num_classes, double* times, cudaStream_t stream);

// ids [S] and num_draws [1] of the only row of a sorted race. S > 0.
cudaError_t first_arrivals(const double* sorted_times, const int64_t* arrivals, int64_t num_samples,
                           int64_t* ids, int64_t* num_draws, cudaStream_t stream);

}  // namespace ssc::cuda
