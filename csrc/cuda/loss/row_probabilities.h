// A row of P from its logits, for every loss that has them.
#pragma once

#include "csrc/cuda/device/row_grid.h"
#include "csrc/cuda/loss/gradients.h"

namespace ssc::cuda {

// P_is = of_logit(z_is, s) for the thread's columns; 0 in a row that does not count, whose logits
// may be anything. Rows lie in the workspace, aligned, and P may take the place of its logits.
template <class T, class F>
__device__ __forceinline__ void write_probabilities(const GradChunk<T>& c, const RowPlace& place,
                                                    bool counts, F&& of_logit) {
  using A = typename GradChunk<T>::A;
  const RowColumns columns = row_columns(c.problem.samples, true);
  const A* const logits = c.logits + place.row * c.stride;
  T* const to = c.probabilities + place.row * c.stride;
  for (int64_t s = place.column; s < columns.count; s += column_step()) {
    Columns<A> x = {};
    if (counts) {
      x = read_columns<A>(logits, s, columns);
#pragma unroll
      for (int k = 0; k < kColumns; ++k) x.at[k] = of_logit(x.at[k], s + k);
    }
    write_columns(x, to, s, columns);
  }
}

}  // namespace ssc::cuda
