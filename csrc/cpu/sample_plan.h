// What the loss needs to know about the sampled ids before it touches a row of W: which distinct
// classes they are, which sample is which row's target, and which rows of the gradient are written.
#pragma once

#include <cstdint>

#include "csrc/cpu/dtype.h"
#include "csrc/cpu/workspace.h"

namespace ssc {

struct SamplePlan {
  // Distinct samples by rising id. Duplicates have equal logits, so they are merged before the
  // matmuls: Σ_j exp(z − c_j) = exp(z − c) with c = −log Σ_j exp(−c_j).
  int64_t distinct = 0;
  int64_t* ids = nullptr;        // [distinct]
  double* log_count = nullptr;   // [distinct]: the merged c
  double* log_copies = nullptr;  // [distinct]: c of its likeliest copy, less the merged c; >= 0
  int64_t* slot = nullptr;       // [distinct] position in `touched`

  // Rows that count, i.e. whose target is not ignore_index, in rising order.
  int64_t rows = 0;
  int64_t* row_ids = nullptr;  // [rows]
  bool remove_hits = true;     // whether a hit is left out
  int64_t* hit = nullptr;      // [rows]: the distinct sample that is the row's target, or −1

  // Classes whose gradient rows are written: samples and targets, by rising id.
  int64_t touched_count = 0;
  int64_t* touched = nullptr;  // [touched_count]

  // The rows again, by (class of the target, row).
  int64_t* by_target = nullptr;       // [rows]: index into row_ids
  int64_t* by_target_slot = nullptr;  // [rows]: its target's position in `touched`

  // The first row whose target, or sample whose id, is outside [0, classes); −1 if none. The other
  // fields are not filled in then.
  int64_t bad_target = -1;
  int64_t bad_id = -1;
};

// log_expected_count: [samples] floats or doubles, or null for 0.
SamplePlan plan_samples(const int64_t* ids, int64_t samples, const void* log_expected_count,
                        DType log_count_dtype, const int64_t* target, int64_t batch,
                        int64_t classes, int64_t ignore_index, bool remove_accidental_hits,
                        Workspace& workspace);

}  // namespace ssc
