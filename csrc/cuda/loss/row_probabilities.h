// A row of P from its logits, for every loss that has them, in the form in which the products take it.
#pragma once

#include <type_traits>

#include "csrc/cuda/device/mma.h"
#include "csrc/cuda/device/row_grid.h"
#include "csrc/cuda/loss/gradients.h"

namespace ssc::cuda {

// P_is = of_logit(z_is, s) for the thread's columns; 0 in a row that does not count, whose logits
// may be anything, and after the last sample. Rows lie in the workspace, aligned, and P may take the
// place of its logits. Floats for tensor cores are rounded to tf32: here once, there they would be
// for each fragment.
template <class T, class F>
__device__ __forceinline__ void write_probabilities(const GradChunk<T>& c, const RowPlace& place,
                                                    bool counts, F&& of_logit) {
  using A = typename GradChunk<T>::A;
  const RowColumns samples = row_columns(c.problem.samples, true);
  const A* const logits = c.logits + place.row * c.stride;
  T* const to = c.probabilities + place.row * c.stride;
  for (int64_t s = place.column; s < c.stride; s += column_step()) {
    Columns<A> x = {};
    if (counts && s < samples.count) {
      x = read_columns<A>(logits, s, samples);
      const int64_t left = samples.count - s;
#pragma unroll
      for (int k = 0; k < kColumns; ++k) x.at[k] = k < left ? of_logit(x.at[k], s + k) : A(0);
    }
    if constexpr (std::is_same_v<T, float>) {
      if (c.path == MatmulPath::tensor_cores) {
#pragma unroll
        for (float& p : x.at) p = __uint_as_float(to_tf32(p));
      }
    }
    write_whole(x, to + s);
  }
}

}  // namespace ssc::cuda
