#include <algorithm>
#include <cmath>
#include <limits>

#include "csrc/cpu/per_row/per_row.h"
#include "csrc/cpu/per_row/samples.h"

namespace ssc {

// Defined by kernels/per_row.cpp, once per instruction set.
namespace scalar {
template <class T>
const PerRowKernels<T>& per_row_table();
}
#if defined(__x86_64__)
namespace avx2 {
template <class T>
const PerRowKernels<T>& per_row_table();
}
namespace avx512 {
template <class T>
const PerRowKernels<T>& per_row_table();
}
#endif

template <class T>
const PerRowKernels<T>& per_row_kernels(Isa isa) {
#if defined(__x86_64__)
  if (vector_isa(isa) == Isa::avx512) return avx512::per_row_table<T>();
  if (isa == Isa::avx2) return avx2::per_row_table<T>();
#endif
  static_cast<void>(isa);
  return scalar::per_row_table<T>();
}

template const PerRowKernels<float>& per_row_kernels(Isa);
template const PerRowKernels<double>& per_row_kernels(Isa);

namespace {

// log(1 + Σ exp(z − r)), whichever of them is largest; NaN for an infinite r above them, as
// everywhere.
template <class T>
T softmax_loss(const PerRowKernels<T>& kernels, const T* z, int64_t count, T most, T r) {
  if (count == 0 || (std::isinf(r) && r > 0)) return r - r;
  if (!(most > r)) return std::log1p(kernels.exp_sum(z, count, r));
  return most - r + std::log(std::exp(r - most) + kernels.exp_sum(z, count, most));
}

}  // namespace

template <class T>
void per_row_loss(const PerRowProblem<T>& problem, T* loss, T* peak,
                  const ParallelFor& parallel_for) {
  const PerRowKernels<T>& kernels = per_row_kernels<T>(active_isa());
  Workspace workspace;
  int64_t* rows = workspace.take<int64_t>(problem.batch);
  const int64_t count = counted_rows(problem, rows);
  if (count < problem.batch) {
    std::fill_n(loss, problem.batch, T(0));
    std::fill_n(peak, problem.batch, T(0));
  }
  const RowScore<T> score = {problem.weight, problem.dim, static_cast<T>(problem.inv_temperature),
                             static_cast<T>(problem.softcap)};
  parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    Workspace local;
    T* z = local.take<T>(problem.samples.num_samples);
    T* h = local.take<T>(problem.dim);
    RowSource<T> source(problem, rows + begin, end - begin);
    typename RowSource<T>::Row row;
    for (int64_t ahead = 0; source.next(row, ahead);) {
      kernels.load_row(problem.input, row.row, problem.dim, h);
      kernels.score(score, {h, row.ids, row.count, ahead, row.bias, row.log_count}, z);
      const T own = kernels.maximum(z, row.num_peak);
      const T hit = kernels.maximum(z + row.num_peak, row.count - row.num_peak);
      peak[row.row] = own;
      loss[row.row] = problem.sigmoid ? kernels.softplus_sum(z, row.count)
                                      : softmax_loss(kernels, z, row.count, std::max(own, hit),
                                                     problem.target_logit[row.row]);
    }
  });
}

template void per_row_loss(const PerRowProblem<float>&, float*, float*, const ParallelFor&);
template void per_row_loss(const PerRowProblem<double>&, double*, double*, const ParallelFor&);

}  // namespace ssc
