// The inner loops of row updates, one table of functions per instruction set, all with the same bits.
#pragma once

#include "csrc/cpu/sample/table.h"
#include "csrc/cpu/update/update.h"

namespace ssc {

struct UpdateKernels {
  // Positions [begin, end) of update.ids; `philox` makes the random bits of stochastic rounding.
  void (*rows)(const RowUpdate& update, decltype(SampleKernels::philox) philox, int64_t begin,
               int64_t end);
  StepScalars (*scalars)(const UpdateOptions& options, int64_t step);
  // Writes the history of the step in update.step.
  void (*close)(const RowUpdate& update);
  // Whether all of the numbers are finite.
  bool (*finite)(const void* values, DType dtype, int64_t count);
};

const UpdateKernels& update_kernels(Isa isa);

}  // namespace ssc
