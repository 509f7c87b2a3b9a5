// One block each: B numbers are few, and one block needs no second pass and no atomics.
#include "csrc/cuda/loss/total.h"

namespace ssc::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;

// The sum over the block's threads, for all of them; the same tree every time.
template <class V>
__device__ __forceinline__ V block_sum(V value, V (&shared)[kWarps]) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  V sum = 0;
  for (const V part : shared) sum += part;
  return sum;
}

template <class A>
__global__ void __launch_bounds__(kThreads)
    row_factors_kernel(const int64_t* target, int64_t batch, int64_t ignore_index, bool mean,
                       A* factors) {
  __shared__ int64_t shared[kWarps];
  int64_t rows = 0;
  for (int64_t i = threadIdx.x; mean && i < batch; i += kThreads) {
    rows += target[i] != ignore_index;
  }
  rows = block_sum(rows, shared);
  const A factor = rows > 0 ? A(1) / static_cast<A>(rows) : A(1);
  for (int64_t i = threadIdx.x; i < batch; i += kThreads) factors[i] = factor;
}

template <class A>
__global__ void __launch_bounds__(kThreads)
    total_loss_kernel(const A* factors, const A* loss, int64_t batch, A* total) {
  __shared__ double shared[kWarps];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < batch; i += kThreads) {
    sum += static_cast<double>(factors[i]) * static_cast<double>(loss[i]);
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) *total = static_cast<A>(sum);
}

}  // namespace

template <class A>
cudaError_t row_factors(const int64_t* target, int64_t batch, int64_t ignore_index, bool mean,
                        A* factors, cudaStream_t stream) {
  if (batch == 0) return cudaSuccess;
  return launch(row_factors_kernel<A>, 1, kThreads, 0, stream, target, batch, ignore_index, mean,
                factors);
}

template <class A>
cudaError_t total_loss(const A* factors, const A* loss, int64_t batch, A* total,
                       cudaStream_t stream) {
  return launch(total_loss_kernel<A>, 1, kThreads, 0, stream, factors, loss, batch, total);
}

#define SSC_REDUCTION_INSTANCE(A)                                                             \
  template cudaError_t row_factors(const int64_t*, int64_t, int64_t, bool, A*, cudaStream_t); \
  template cudaError_t total_loss(const A*, const A*, int64_t, A*, cudaStream_t)
SSC_REDUCTION_INSTANCE(float);
SSC_REDUCTION_INSTANCE(double);
#undef SSC_REDUCTION_INSTANCE

}  // namespace ssc::cuda
