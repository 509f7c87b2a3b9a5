// Rows of W divided by their norms, for losses of cosines, and the way back.
#pragma once

#include <cstdint>

#include "csrc/cpu/base/dtype.h"
#include "csrc/cpu/base/isa.h"
#include "csrc/cpu/base/parallel.h"

namespace ssc {

// unit[n] = W_k / max(|W_k|, 1e-12) for class k = classes[n], norm[n] = |W_k|. unit [count][dim].
template <class T>
void unit_rows(MatrixView weight, const int64_t* classes, int64_t count, int64_t dim, T* unit,
               T* norm, Isa isa, const ParallelFor& parallel_for);

// The gradient of the rows of W from that of the unit rows: (g − u (g · u)) / |W_k|; below 1e-12,
// where the division is by a constant, g / 1e-12. All [count][dim] but for norm [count].
template <class T>
void unit_rows_grad(const T* grad, const T* unit, const T* norm, int64_t count, int64_t dim, T* out,
                    Isa isa, const ParallelFor& parallel_for);

}  // namespace ssc
