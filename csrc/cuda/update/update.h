// Steps of row-sparse optimizers on the GPU, with the bits of csrc/cpu/update: the rules are those
// of csrc/core/row_update.h.
//
//   begin_step   the numbers of the step, from what the device alone knows: the count of steps, and
//                where they are tensors the learning rate, the gradients' scale and whether they
//                have an inf, with which nothing else happens
//   plan_rows    which rows there are to do and what each owes; repeats whose gradient is zero
//   update_rows  a warp per row
//   close_step   the history with this step, and the count
//
// Bound by memory: with K states of the parameter's size a row is read K + 2 times and written K + 1
// times, all of it 16 bytes a lane where rows are aligned to that. Nothing waits or allocates, and
// launches depend on shapes alone. Gradients of one row are added up in their order.
#pragma once

#include <cstdint>

#include "csrc/core/row_update.h"
#include "csrc/cuda/device/accumulator.h"
#include "csrc/cuda/device/device.h"

namespace ssc::cuda {

// In the device's memory.
struct StepNumbers {
  UpdateOptions options;
  StepScalars step;
  bool stopped;  // found_inf
};

// Each one number; lr, grad_scale, found_inf: null where options has it, or there is none.
struct StepInputs {
  const float* step;  // steps so far
  const double *lr, *grad_scale, *found_inf;
};

// steps: this is step *inputs.step + 1; else debts are paid up to *inputs.step.
cudaError_t begin_step(const UpdateOptions& options, const StepInputs& inputs, bool steps,
                       StepNumbers* numbers, cudaStream_t stream);

// Writes the history (none: data is null), and counts the step.
cudaError_t close_step(const StepNumbers* numbers, const UpdateHistory& history, float* step,
                       cudaStream_t stream);

// A parameter with its state, and the rows that a call is about: RowUpdate of
// csrc/cpu/update/update.h, where P is the parameter's type and S that of states.
template <class P, class S>
struct RowUpdate {
  using Accumulator = typename AccumulatorOf<P>::Type;

  P* param;
  int64_t rows, stride, dim, total;
  const P* values;
  const int64_t *ids, *order;
  int64_t count;
  S *first, *second;        // null: the rule has none
  Accumulator* row_second;  // [C] or null
  P* compensation;
  int32_t* last_step;
  UpdateHistory history;
  UpdateRule rule;
  Rounding rounding;
  uint64_t seed;
};

// The size of the workspace of update_rows.
int64_t update_rows_bytes(int64_t count, bool chosen, bool owes);

// plan_rows and update_rows, the latter a part of all rows after the other where no ids choose some.
template <class P, class S>
cudaError_t update_rows(const RowUpdate<P, S>& update, const StepNumbers* numbers, void* workspace,
                        cudaStream_t stream);

// --- within update_rows -----------------------------------------------------------------------------

enum class RowTask : uint8_t { none, step, pay };  // pay: and then step, if there is a gradient

// Positions [begin, begin + count) of an update, and what is to be done there; pointers are null
// where there is nothing to tell.
struct RowPlan {
  int64_t begin, count;
  RowTask* tasks;  // [count]
  void* debts;     // Debts<Accumulator>[count], where the task is `pay`; room for doubles
  uint32_t* used;  // bit n: 0 for a repeat of the position before whose gradient is +0 throughout
};

// The part of a RowUpdate that plan_rows needs.
struct PlannedRows {
  const int64_t *ids, *order;
  const void* values;
  int64_t rows, dim;
  int value_bytes;
  int32_t* last_step;
  UpdateHistory history;
};

cudaError_t plan_rows(const PlannedRows& rows, const StepNumbers* numbers, const RowPlan& plan,
                      cudaStream_t stream);

// Calls `macro` with each pair of a parameter's type and its states'.
#define SSC_FOR_UPDATES(macro)         \
  macro(double, double);               \
  macro(float, float);                 \
  macro(float, __nv_bfloat16);         \
  macro(__nv_bfloat16, float);         \
  macro(__nv_bfloat16, __nv_bfloat16); \
  macro(__half, float);                \
  macro(__half, __nv_bfloat16)

}  // namespace ssc::cuda
