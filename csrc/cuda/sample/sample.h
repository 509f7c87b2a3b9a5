// Draws on the GPU: the same ids as csrc/cpu/sample/sample.h for the same key. Keys are read from
// device memory and nothing waits, allocates or is read back, so a draw can be captured in a CUDA
// graph and gives new negatives at each replay after its key was advanced there. Each section below
// has a source of its own.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "csrc/cuda/sample/proposal.h"

namespace ssc::cuda {

// --- with replacement ---

LogUniformProposal log_uniform_proposal(uint64_t num_classes);

// ids[i] = the class of draw i of the key (int64[2]: seed, offset), i < num_samples. All pointers
// are to device memory; ids is 16-byte aligned.
template <class Proposal>
cudaError_t draw(const Proposal& proposal, const int64_t* key, int64_t num_samples, int64_t* ids,
                 cudaStream_t stream);

// out[i] = log n of ids[i], i < count. tries: null, or the t of S distinct classes in device
// memory, which then stands for that of log_count.
template <class Proposal>
cudaError_t log_expected_counts(const Proposal& proposal, const LogCount& log_count,
                                const double* tries, const int64_t* ids, int64_t count, float* out,
                                cudaStream_t stream);

// --- without replacement ---
//
// The first S distinct ids of the stream of draws, in the order of the draws, exactly
// sample_distinct of csrc/cpu/sample/sample.h.

// Bytes of workspace for S samples: at most 145 S and 66 KiB. Nothing grows with C.
int64_t distinct_bytes(int64_t num_samples);

// ids [S], and how many draws they took [1]. The caller sees to it that there are S classes to find
// and that this takes no more than a few draws per class (else: a race). After a thousand
// draws per class the search ends: ids that are missing, and num_draws, are then −1. The workspace
// is aligned to 256 bytes and may hold anything.
template <class Proposal>
cudaError_t draw_distinct(const Proposal& proposal, const int64_t* key, int64_t num_samples,
                          int64_t* ids, int64_t* num_draws, void* workspace, cudaStream_t stream);

// --- without replacement, by an exponential race (csrc/core/logit_correction.h) ---
//
// For samples that would take more than a few draws per class: exactly csrc/cpu's race. A batch of
// rows has a race of its own for each, in steps of which the third is done by a library:
//
//   arrival_times   the time at which each class arrives first in each row
//   bar_classes     those on a row's list never arrive
//   sort_arrivals   by rising time, stable; the classes of the first S are the ids, in order
//   first_arrivals  the ids of one race, and the number of draws, from the S-th time; those of
//                   rows are taken by draw_filtered_rows
//
// All arrays are [rows][race_stride(C)].

// Rows begin at multiples of 16 bytes.
__host__ __device__ constexpr int64_t race_stride(int64_t num_classes) {
  return num_classes + num_classes % 2;
}

// The row whose draws are the key's own, of no row.
constexpr int64_t kSharedDraws = -1;

// Stands for the number of draws: the time of the last of the samples.
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

// order: the classes of each row by rising time >= 0, equal times in the order of the classes, and
// sorted: their times. classes is 0, 1, ... All are [rows][race_stride(C)], of which the first C
// are sorted; rows · stride < 2^31 unless there is one row. With `temporary` null nothing is sorted
// and `bytes` becomes the size of the memory that it has to point to.
cudaError_t sort_arrivals(void* temporary, size_t& bytes, const double* times,
                          const int64_t* classes, int64_t rows, int64_t num_classes, double* sorted,
                          int64_t* order, cudaStream_t stream);

// --- rows' own samples ---

// ids [rows][samples]: row i's are the draws of the key's subsequence first_row + i + 1. log_count,
// likewise, of draws with replacement; null: not wanted.
template <class Proposal>
cudaError_t draw_rows(const Proposal& proposal, const int64_t* key, int64_t first_row, int64_t rows,
                      int64_t samples, int64_t* ids, float* log_count, cudaStream_t stream);

// --- rows' own samples that not every draw of their streams is good for ---
//
// Distinct ones, and ones that are not on the row's list. Or the first arrivals of the rows' races.

struct RowFilter {
  bool distinct;
  // The t behind n without replacement, in host memory where known there: NaN, and null, for each
  // row's own number of draws.
  double tries;
  const double* device_tries;
  const int64_t* exclude;  // [rows][num_excluded], ids outside [0, C) exclude nothing; may be null
  int64_t num_excluded;
  uint64_t num_drawable;
  // Whether the samples are the first of `arrivals`, instead of the first good draws of a stream.
  bool race;
  // The arrivals of a race, sorted by time: [rows][race_stride(C)]. Not looked at where only counts
  // are wanted that don't depend on the draws.
  const double* arrival_times = nullptr;
  const int64_t* arrivals = nullptr;

  // Whether counts depend on what a row draws, as far as the host knows.
  bool counts_draws() const { return distinct && device_tries == nullptr && tries != tries; }
};

// The outputs of `rows` rows from first_row on; exclude and all that follows begin with the first
// of them.
struct RowOutputs {
  int64_t* ids;            // [rows][samples]; null: not wanted
  int64_t* num_draws;      // [rows], excluded ones not counted; may be null
  float* log_count;        // [rows][samples] or null
  const int64_t* targets;  // [rows][num_targets]
  int64_t num_targets;
  float* target_log_count;  // [rows][num_targets]

  // The same without the first `skipped` rows.
  RowOutputs from(int64_t skipped, int64_t samples) const {
    const auto later = [&](auto* pointer, int64_t width) {
      return pointer == nullptr ? nullptr : pointer + skipped * width;
    };
    return {later(ids, samples),         later(num_draws, 1), later(log_count, samples),
            later(targets, num_targets), num_targets,         later(target_log_count, num_targets)};
  }
};

// Bytes of workspace for `blocks` blocks, each of which has room for the ids of one row.
int64_t filtered_rows_bytes(const RowFilter& filter, int64_t samples, int64_t blocks);
// A number of blocks for `rows` rows within `most_bytes`, at least one.
int64_t filtered_rows_blocks(const RowFilter& filter, int64_t samples, int64_t rows,
                             int64_t most_bytes);

// A row whose list leaves too few classes gets ids −1 and counts NaN.
template <class Proposal>
cudaError_t draw_filtered_rows(const Proposal& proposal, const int64_t* key,
                               const RowFilter& filter, int64_t first_row, int64_t rows,
                               int64_t samples, const RowOutputs& out, void* workspace,
                               int64_t blocks, cudaStream_t stream);

}  // namespace ssc::cuda
