// The plan of a loss, made from the sampled ids before a row of W is touched: which distinct
// classes they are, which sample is which row's target, and which rows of the gradient are written.
#pragma once

#include <cstdint>

#include "csrc/cpu/base/dtype.h"
#include "csrc/cpu/base/workspace.h"

namespace ssc {

struct SamplePlan {
  // Distinct samples by rising id. Duplicates have equal logits, so they are merged before the
  // matmuls: Σ_j exp(z − c_j) = exp(z − c) with c = −log Σ_j exp(−c_j). Only where softplus is
  // summed, copies of a class with different counts stay samples of their own.
  int64_t distinct = 0;
  int64_t* ids = nullptr;        // [distinct]
  double* log_count = nullptr;   // [distinct]: the merged c
  double* log_copies = nullptr;  // [distinct]: c of its likeliest copy, less the merged c; >= 0
  int64_t* slot = nullptr;       // [distinct] position in `touched`; does not fall

  // Rows that count, i.e. whose target is not ignore_index, in rising order.
  int64_t rows = 0;
  int64_t* row_ids = nullptr;  // [rows]
  bool remove_hits = true;     // whether a hit is left out
  int64_t* hit = nullptr;      // [rows]: the distinct sample that is the row's target, or −1
  // Instead of it, for negatives: row i's are hit_list[hit_begin[i], hit_begin[i + 1]), rising.
  int64_t* hit_begin = nullptr;  // [rows + 1]
  int64_t* hit_list = nullptr;

  // Classes whose gradient rows are written: samples and targets, by rising id.
  int64_t touched_count = 0;
  int64_t* touched = nullptr;  // [touched_count]

  // The rows again, by (class of the target, row); none for negatives.
  int64_t targets = 0;
  int64_t* by_target = nullptr;       // [targets]: index into row_ids
  int64_t* by_target_slot = nullptr;  // [targets]: its target's position in `touched`

  bool uneven = false;  // whether some class is more than one sample

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

// The same for the negatives' loss, to which targets matter only as classes hits [batch][hit_count]
// that each row leaves out. counted: [batch], or null for all
// rows. others: [other_count] classes in [0, classes), or −1, that are touched as well.
SamplePlan plan_negatives(const int64_t* ids, int64_t samples, const void* log_expected_count,
                          DType log_count_dtype, const int64_t* hits, int64_t hit_count,
                          const bool* counted, int64_t batch, int64_t classes, bool remove_hits,
                          bool sigmoid, const int64_t* others, int64_t other_count,
                          Workspace& workspace);

}  // namespace ssc
