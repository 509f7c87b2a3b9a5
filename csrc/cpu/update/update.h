// One step of an optimizer for the rows of a parameter that have a gradient, and the payment of what
// untouched rows owe. The rules are in csrc/core/row_update.h.
#pragma once

#include <cstdint>

#include "csrc/core/row_update.h"
#include "csrc/cpu/base/dtype.h"
#include "csrc/cpu/base/isa.h"
#include "csrc/cpu/base/parallel.h"

namespace ssc {

// A parameter with its state, and the rows that a call is about.
//
//   param, values    dtype param_dtype; param [C, dim] with rows `stride` elements apart, values
//                    [N, dim]: the gradients of the rows `ids`, or null to pay debts alone
//   ids [N]          rows, in rising order where they have gradients: those of one row are added up
//                    in the order of N. What is no row is left out. null: all rows, N = C
//   order [N]        where the gradient of ids[n] is in values; null: at n
//   first            [C, dim], dtype state_dtype: first moment, momentum. null: the rule has none
//   second           [C, dim] like it; row-wise rules: [C] float, double for double. Or null
//   compensation     [C, dim], dtype param_dtype, with Rounding::kahan: what rounding took away
//   last_step [C]    the step up to which a row has paid. null: no row ever owes
//
// `total` elements in all: a dense parameter whose rows mean nothing to its rule may be taken in
// rows of any length, of which the last is shorter.
struct RowUpdate {
  DType param_dtype, state_dtype;
  void* param;
  int64_t rows, stride, dim, total;
  const void* values;
  const int64_t *ids, *order;
  int64_t count;
  void *first, *second, *compensation;
  int32_t* last_step;
  UpdateHistory history;
  UpdateOptions options;
  Rounding rounding;
  uint64_t seed;
  StepScalars step;  // filled in by the functions below

  int64_t length(int64_t row) const {
    const int64_t left = total - row * dim;
    return left < dim ? left : dim;
  }
};

// Step *step + 1, which *step is afterwards.
void update_rows(RowUpdate update, float* step, Isa isa, const ParallelFor& parallel_for);

// All debts of `ids`, which may have repeats, or of all rows, up to *step.
void settle_rows(RowUpdate update, const float* step, Isa isa, const ParallelFor& parallel_for);

// The first of N rows of values [N, dim] with an inf or a NaN, or −1.
int64_t first_nonfinite_row(const void* values, DType dtype, int64_t count, int64_t dim, Isa isa,
                            const ParallelFor& parallel_for);

}  // namespace ssc
