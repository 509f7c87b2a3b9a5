// Barriers of the block: where they are needed, and what happens where they are wrong.
#include "csrc/cuda/device/device.h"
#include "csrc/simt/registry.h"

namespace {

namespace cuda = ssc::cuda;

constexpr int kThreads = 96;  // three warps

// out[b] = sum of the block's numbers, by a tree; the first barrier can be left out, or the others.
enum TreeMutation { kTree, kNoFirstBarrier, kNoInnerBarrier };

__global__ void tree_sum_kernel(const float* x, float* sums, int mutation) {
  __shared__ float partial[256];
  const int t = threadIdx.x;
  partial[t] = x[blockIdx.x * 256 + t];
  if (mutation != kNoFirstBarrier) __syncthreads();
  for (int half = 128; half > 0; half /= 2) {
    if (t < half) partial[t] += partial[t + half];
    if (mutation != kNoInnerBarrier) __syncthreads();
  }
  if (t == 0) sums[blockIdx.x] = partial[0];
}

// y = x reversed within the block, through dynamic shared memory.
__global__ void reverse_kernel(const int* x, int* y, int n) {
  int* tile = cuda::dynamic_shared<int>();
  const int t = threadIdx.x;
  if (t < n) tile[t] = x[t];
  __syncthreads();
  if (t < n) y[t] = tile[n - 1 - t];
}

// How many of the block's numbers are positive, whether all are, whether any is.
__global__ void vote_kernel(const int* x, int* answers) {
  const int positive = x[blockIdx.x * blockDim.x + threadIdx.x] > 0;
  const int count = __syncthreads_count(positive);
  const int all = __syncthreads_and(positive);
  const int any = __syncthreads_or(positive);
  int* mine = answers + 3 * (blockIdx.x * blockDim.x + threadIdx.x);
  mine[0] = count;
  mine[1] = all;
  mine[2] = any;
}

enum Divergence { kConverged, kOneLine, kTwoLines, kOneSideOnly, kSomeExit, kBarrierAgainstWarp };

// Every thread passes exactly one barrier, except in the mutations.
__global__ void divergent_kernel(int* y, int mutation) {
  const int t = threadIdx.x;
  if (mutation == kSomeExit && t >= 80) return;
  if (mutation == kOneLine) {
    // clang-format off
    if (t < 40) { __syncthreads(); } else { __syncthreads(); }
    // clang-format on
  } else if (mutation == kTwoLines) {
    if (t < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  } else if (mutation == kOneSideOnly) {
    if (t < 64) __syncthreads();
    if (t >= 64) __syncthreads_count(1);
  } else if (mutation == kBarrierAgainstWarp) {
    if (t % 32 == 3) __syncthreads();
    __syncwarp();
  } else {
    __syncthreads();
  }
  y[t] = t;
}

// Static and dynamic memory side by side, in a template as most kernels are.
template <class T>
__global__ void static_and_dynamic_kernel(T* y) {
  __shared__ T fixed[256];
  T* const dynamic = cuda::dynamic_shared<T>();
  fixed[threadIdx.x] = static_cast<T>(threadIdx.x);
  dynamic[threadIdx.x] = 1;
  y[threadIdx.x] = fixed[threadIdx.x] + dynamic[threadIdx.x];
}

// A helper with a barrier of its own, instantiated twice: two different barriers.
template <int kInstance>
__device__ void helper(int* y) {
  __syncthreads();
  y[threadIdx.x] = kInstance;
}
__global__ void two_instances_kernel(int* y) {
  if (threadIdx.x < 32) {
    helper<1>(y);
  } else {
    helper<2>(y);
  }
}

}  // namespace

SSC_SIMT_LAUNCHER(
    "tree_sum", +[](const float* x, float* sums, int blocks, int mutation) {
      return cuda::launch(tree_sum_kernel, blocks, 256, 0, nullptr, x, sums, mutation);
    });
SSC_SIMT_LAUNCHER(
    "reverse", +[](const int* x, int* y, int n, int64_t shared_bytes) {
      return cuda::launch(reverse_kernel, 1, (n + 31) / 32 * 32, shared_bytes, nullptr, x, y, n);
    });
SSC_SIMT_LAUNCHER(
    "static_and_dynamic", +[](int* y, int64_t shared_bytes) {
      return cuda::launch(static_and_dynamic_kernel<int>, 1, 32, shared_bytes, nullptr, y);
    });
SSC_SIMT_LAUNCHER(
    "barrier_votes", +[](const int* x, int* answers, int blocks) {
      return cuda::launch(vote_kernel, blocks, kThreads, 0, nullptr, x, answers);
    });
SSC_SIMT_LAUNCHER(
    "divergent", +[](int* y, int mutation) {
      return cuda::launch(divergent_kernel, 1, kThreads, 0, nullptr, y, mutation);
    });
SSC_SIMT_LAUNCHER(
    "two_instances",
    +[](int* y) { return cuda::launch(two_instances_kernel, 1, kThreads, 0, nullptr, y); });
// More than 48 KiB have to be asked for.
SSC_SIMT_LAUNCHER(
    "reverse_large", +[](const int* x, int* y, int n, int shared_bytes) {
      const cudaError_t error = cudaFuncSetAttribute(
          reverse_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
      if (error != cudaSuccess) return error;
      const cudaError_t result =
          cuda::launch(reverse_kernel, 1, (n + 31) / 32 * 32, shared_bytes, nullptr, x, y, n);
      // The limit is the kernel's, for good; others call it too.
      cudaFuncSetAttribute(reverse_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 48 * 1024);
      return result;
    });
