// Kernels that need little more than threads.
#include "csrc/cuda/device.h"
#include "csrc/simt/registry.h"

namespace {

__global__ void scale_kernel(float* x, int64_t n, float factor) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += stride) {
    x[i] *= factor;
  }
}

// Sums of 256 numbers by a tree in shared memory.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) tree_sum_kernel(const float* x, float* sums) {
  __shared__ float partial[kThreads];
  const int t = threadIdx.x;
  partial[t] = x[blockIdx.x * kThreads + t];
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (t < half) partial[t] += partial[t + half];
  }
  if (t == 0) sums[blockIdx.x] = partial[0];
}

}  // namespace

SSC_SIMT_LAUNCHER(
    "scale", +[](float* x, int64_t n, float factor, int blocks, cudaStream_t stream) {
      return ssc::cuda::launch(scale_kernel, blocks, 128, 0, stream, x, n, factor);
    });
SSC_SIMT_LAUNCHER(
    "tree_sum", +[](const float* x, float* sums, int blocks, cudaStream_t stream) {
      return ssc::cuda::launch(tree_sum_kernel<256>, blocks, 256, 0, stream, x, sums);
    });
