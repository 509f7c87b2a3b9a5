#include "csrc/cpu/loss/unit_rows.h"

#include <algorithm>
#include <cmath>

#include "csrc/cpu/base/prefetch.h"
#include "csrc/cpu/loss/table.h"

namespace ssc {
namespace {

constexpr int64_t kGrain = 64;  // rows that are worth a thread
constexpr int64_t kAhead = 8;   // rows between a prefetch and its use
constexpr double kLeastNorm = 1e-12;

template <class T>
constexpr DType kOwn = sizeof(T) == 8 ? DType::f64 : DType::f32;

void prefetch_row(MatrixView matrix, int64_t row, int64_t dim) {
  prefetch_lines(matrix.row(row), dim * element_size(matrix.dtype));
}

}  // namespace

template <class T>
void unit_rows(MatrixView weight, const int64_t* classes, int64_t count, int64_t dim, T* unit,
               T* norm, Isa isa, const ParallelFor& parallel_for) {
  const LossKernels<T>& kernels = loss_kernels<T>(isa, kOwn<T>, weight.dtype);
  parallel_for(count, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < std::min(begin + kAhead, end); ++n)
      prefetch_row(weight, classes[n], dim);
    for (int64_t n = begin; n < end; ++n) {
      if (n + kAhead < end) prefetch_row(weight, classes[n + kAhead], dim);
      norm[n] = std::sqrt(kernels.dot(weight, classes[n], weight, classes[n], dim));
      T* const row = unit + n * dim;
      std::fill_n(row, dim, T(0));
      const T divisor = std::max(norm[n], static_cast<T>(kLeastNorm));
      kernels.add_row(weight, classes[n], dim, T(1) / divisor, row);
    }
  });
}

template <class T>
void unit_rows_grad(const T* grad, const T* unit, const T* norm, int64_t count, int64_t dim, T* out,
                    Isa isa, const ParallelFor& parallel_for) {
  const LossKernels<T>& kernels = loss_kernels<T>(isa, kOwn<T>, kOwn<T>);
  const MatrixView g = {grad, dim, kOwn<T>}, u = {unit, dim, kOwn<T>};
  parallel_for(count, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const bool divided = norm[n] >= static_cast<T>(kLeastNorm);
      const T factor = T(1) / (divided ? norm[n] : static_cast<T>(kLeastNorm));
      T* const row = out + n * dim;
      std::fill_n(row, dim, T(0));
      kernels.add_row(g, n, dim, factor, row);
      if (divided) kernels.add_row(u, n, dim, -factor * kernels.dot(g, n, u, n, dim), row);
    }
  });
}

template void unit_rows(MatrixView, const int64_t*, int64_t, int64_t, float*, float*, Isa,
                        const ParallelFor&);
template void unit_rows(MatrixView, const int64_t*, int64_t, int64_t, double*, double*, Isa,
                        const ParallelFor&);
template void unit_rows_grad(const float*, const float*, const float*, int64_t, int64_t, float*,
                             Isa, const ParallelFor&);
template void unit_rows_grad(const double*, const double*, const double*, int64_t, int64_t, double*,
                             Isa, const ParallelFor&);

}  // namespace ssc
