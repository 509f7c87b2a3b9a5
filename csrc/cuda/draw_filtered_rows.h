// Draws of rows' own samples that not every draw of their streams is good for: distinct ones, and
// ones that are not on the row's list. Or the first arrivals of the rows' races.
#pragma once

#include <cstdint>

#include "csrc/cuda/proposal.h"

namespace ssc::cuda {

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
  // Of a race, sorted by time (sample_race.h): [rows][race_stride(C)]. Not looked at where only
  // counts are wanted that don't depend on the draws.
  const double* arrival_times = nullptr;
  const int64_t* arrivals = nullptr;

  // Whether counts depend on what a row draws, as far as the host knows.
  bool counts_draws() const { return distinct && device_tries == nullptr && tries != tries; }
};

// Of `rows` rows from first_row on; exclude and all that follows begin with the first of them.
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
