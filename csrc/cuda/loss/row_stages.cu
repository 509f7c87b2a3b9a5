// The stages that go row by row, before and after the matmul: a warp or a thread for each.
#include "csrc/core/logit_correction.h"
#include "csrc/cuda/device/row_grid.h"
#include "csrc/cuda/loss/loss.h"
#include "csrc/cuda/loss/row_loss.h"

namespace ssc::cuda {
namespace {

constexpr int kRowThreads = 256;

template <class T>
__device__ __forceinline__ bool valid_class(const LossProblem<T>& problem, int64_t id) {
  return static_cast<uint64_t>(id) < static_cast<uint64_t>(problem.classes);
}

// Threads of x, a power of two up to a warp, share a row: 2 D sizeof(T) bytes are read for each.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    target_logits_kernel(const __grid_constant__ LossProblem<T> p,
                         typename LossProblem<T>::Accumulator* target_logit,
                         const __grid_constant__ RowColumns columns) {
  using A = typename LossProblem<T>::Accumulator;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int64_t target = row < p.batch ? p.target[row] : p.ignore_index;
  const bool counts = target != p.ignore_index;
  const bool valid = counts && valid_class(p, target);
  A sum = 0;
  if (valid) {
    const T* h = p.input + row * p.input_stride;
    const T* w = p.weight + target * p.weight_stride;
    for (int64_t d = threadIdx.x * kColumns; d < p.dim; d += blockDim.x * kColumns) {
      const Columns<A> x = read_columns<A>(h, d, columns), y = read_columns<A>(w, d, columns);
#pragma unroll
      for (int k = 0; k < kColumns; ++k) sum += x.at[k] * y.at[k];
    }
  }
  for (unsigned offset = blockDim.x / 2; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(~0u, sum, static_cast<int>(offset));
  }
  if (threadIdx.x != 0 || row >= p.batch) return;
  A logit = 0;
  if (valid) {
    if (p.bias != nullptr) sum += to_accumulator(p.bias[target]);
    logit = sum * p.inv_temperature;
    if (p.target_log_expected_count != nullptr) {
      logit -= correction_of(p.target_log_expected_count[row]);
    }
  } else if (counts) {
    logit = static_cast<A>(__builtin_nan(""));
  }
  target_logit[row] = logit;
}

template <class T>
__global__ void __launch_bounds__(kElementThreads) finish_rows_kernel(
    const __grid_constant__ LossProblem<T> p,
    const __grid_constant__ RowResults<typename LossProblem<T>::Accumulator> out,
    const __grid_constant__ RowParts<typename LossProblem<T>::Accumulator> parts) {
  using A = typename LossProblem<T>::Accumulator;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= p.batch) return;
  if (p.target[row] == p.ignore_index) {
    out.loss[row] = out.lse[row] = out.error[row] = 0;
    return;
  }
  OnlineLse<A> all = empty_lse<A>();
  bool beaten = false;
  for (int split = 0; split < parts.splits; ++split) {
    const OnlineLse<A> part = parts.lse[split * p.batch + row];
    all = merge_lse(all, part, [](A x) { return row_exp(x); });
    beaten |= parts.beaten[split * p.batch + row] != 0;
  }
  const RowLoss<A> merged = row_loss(all, out.target_logit[row]);
  out.loss[row] = merged.loss;
  out.lse[row] = merged.lse;
  out.error[row] = beaten ? A(1) : A(0);
}

}  // namespace

template <class T>
cudaError_t target_logits(const LossProblem<T>& problem,
                          const RowResults<typename LossProblem<T>::Accumulator>& results,
                          cudaStream_t stream) {
  if (problem.batch == 0) return cudaSuccess;
  const bool aligned = has_aligned_columns(problem.input, problem.input_stride) &&
                       has_aligned_columns(problem.weight, problem.weight_stride);
  // Two accesses each, or more where a warp isn't enough: a sum over lanes costs as much as they.
  unsigned share = 32;
  while (share > 1 && share * kColumns >= problem.dim) share /= 2;
  const unsigned rows = kRowThreads / share;
  return launch(target_logits_kernel<T>, static_cast<unsigned>(ceil_div(problem.batch, rows)),
                dim3(share, rows), 0, stream, problem, results.target_logit,
                row_columns(problem.dim, aligned));
}

template <class T>
cudaError_t finish_rows(const LossProblem<T>& problem,
                        const RowResults<typename LossProblem<T>::Accumulator>& results,
                        const RowParts<typename LossProblem<T>::Accumulator>& parts,
                        cudaStream_t stream) {
  if (problem.batch == 0) return cudaSuccess;
  return launch(finish_rows_kernel<T>,
                static_cast<unsigned>(ceil_div(problem.batch, kElementThreads)), kElementThreads, 0,
                stream, problem, results, parts);
}

#define SSC_ROWS_INSTANCE(T)                                                                \
  template cudaError_t target_logits(                                                       \
      const LossProblem<T>&, const RowResults<LossProblem<T>::Accumulator>&, cudaStream_t); \
  template cudaError_t finish_rows(const LossProblem<T>&,                                   \
                                   const RowResults<LossProblem<T>::Accumulator>&,          \
                                   const RowParts<LossProblem<T>::Accumulator>&, cudaStream_t)
SSC_FOR_TYPES(SSC_ROWS_INSTANCE);
#undef SSC_ROWS_INSTANCE

}  // namespace ssc::cuda
