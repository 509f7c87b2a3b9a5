// Blocks that share global memory: atomics, fences, sequences of kernels.
#include "csrc/cuda/device/device.h"
#include "csrc/simt/registry.h"

namespace {

namespace cuda = ssc::cuda;

constexpr int kThreads = 64;

// Histogram in shared memory first.
__global__ void histogram_kernel(const int* x, int* bins, int n, int count) {
  int* own = cuda::dynamic_shared<int>();
  for (int i = threadIdx.x; i < count; i += blockDim.x) own[i] = 0;
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    atomicAdd(&own[x[i]], 1);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    if (own[i] != 0) atomicAdd(&bins[i], own[i]);
  }
}

// Every atomic of the executor, each on a number of its own.
__global__ void atomics_kernel(const int* x, int* ints, unsigned* words, float* sums,
                               unsigned long long* wide) {
  const int v = x[blockIdx.x * blockDim.x + threadIdx.x];
  atomicAdd(&ints[0], v);
  atomicSub(&ints[1], v);
  atomicMin(&ints[2], v);
  atomicMax(&ints[3], v);
  atomicXor(&ints[4], v);
  atomicAnd(&words[0], static_cast<unsigned>(v));
  atomicOr(&words[1], static_cast<unsigned>(v));
  atomicInc(&words[2], 4);
  atomicDec(&words[3], 6);
  atomicAdd(&sums[0], static_cast<float>(v));
  atomicMax(&wide[0], static_cast<unsigned long long>(v + 100));
  atomicAdd(&wide[1], 1ull << 33);
  // The largest float, by compare-and-swap.
  int seen = __float_as_int(-INFINITY);
  const float mine = static_cast<float>(v) * 0.5f;
  while (__int_as_float(seen) < mine) {
    const int before = atomicCAS(reinterpret_cast<int*>(&sums[1]), seen, __float_as_int(mine));
    if (before == seen) break;
    seen = before;
  }
}

enum LastBlockMutation { kNone, kNoFence, kNoBarrier, kFenceByOne };

// The last block to finish adds up what all blocks have written. The mutations leave out the fence,
// or the barrier that carries every thread's fence to the one that counts; with kFenceByOne the
// fence comes after the barrier and by that thread alone, which is right as well.
__global__ void last_block_kernel(const float* x, float* partial, unsigned* counter, float* total,
                                  int mutation) {
  __shared__ bool last;
  const int t = threadIdx.x;
  partial[blockIdx.x * kThreads + t] = 2 * x[blockIdx.x * kThreads + t];
  if (mutation != kNoFence && mutation != kFenceByOne) __threadfence();
  if (mutation != kNoBarrier) __syncthreads();
  if (t == 0) {
    if (mutation == kFenceByOne) __threadfence();
    last = atomicAdd(counter, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  float sum = 0;
  for (unsigned i = t; i < gridDim.x * kThreads; i += kThreads) {
    sum += partial[i];  // as the last
  }
  atomicAdd(total, sum);
}

// Rows of partial sums, then their sum: two launches.
__global__ void partial_kernel(const float* x, float* partial, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) partial[i] = x[i] * x[i];
}
__global__ void finish_kernel(const float* partial, float* total, int n) {
  float sum = 0;
  for (int i = threadIdx.x; i < n; i += 32) sum += partial[i];
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  if (threadIdx.x == 0) *total = sum;
}

// y[z][y][x] = its own index, on a three-dimensional grid of three-dimensional blocks.
__global__ void index_kernel(int* y, int nx, int ny, int nz) {
  const int ix = blockIdx.x * blockDim.x + threadIdx.x;
  const int iy = blockIdx.y * blockDim.y + threadIdx.y;
  const int iz = blockIdx.z * blockDim.z + threadIdx.z;
  if (ix < nx && iy < ny && iz < nz) y[(iz * ny + iy) * nx + ix] = (iz * ny + iy) * nx + ix;
}

// All blocks write the same place.
__global__ void colliding_kernel(int* y) { y[threadIdx.x] = static_cast<int>(blockIdx.x); }
// Each block reads what its neighbour writes.
__global__ void neighbour_kernel(int* y, int* z) {
  const int b = blockIdx.x, blocks = gridDim.x;
  y[b] = b;
  z[b] = y[(b + 1) % blocks];
}

}  // namespace

SSC_SIMT_LAUNCHER(
    "histogram", +[](const int* x, int* bins, int n, int count, int blocks) {
      return cuda::launch(histogram_kernel, blocks, kThreads, count * sizeof(int), nullptr, x, bins,
                          n, count);
    });
SSC_SIMT_LAUNCHER(
    "atomics", +[](const int* x, int* ints, unsigned* words, float* sums, unsigned long long* wide,
                   int blocks) {
      return cuda::launch(atomics_kernel, blocks, kThreads, 0, nullptr, x, ints, words, sums, wide);
    });
SSC_SIMT_LAUNCHER(
    "last_block",
    +[](const float* x, float* partial, unsigned* counter, float* total, int blocks, int mutation) {
      return cuda::launch(last_block_kernel, blocks, kThreads, 0, nullptr, x, partial, counter,
                          total, mutation);
    });
SSC_SIMT_LAUNCHER(
    "two_kernels", +[](const float* x, float* partial, float* total, int n) {
      const cudaError_t error =
          cuda::launch(partial_kernel, (n + 63) / 64, 64, 0, nullptr, x, partial, n);
      if (error != cudaSuccess) return error;
      return cuda::launch(finish_kernel, 1, 32, 0, nullptr, partial, total, n);
    });
SSC_SIMT_LAUNCHER(
    "index3d", +[](int* y, int nx, int ny, int nz) {
      const dim3 block(8, 3, 2), grid((nx + 7) / 8, (ny + 2) / 3, (nz + 1) / 2);
      return cuda::launch(index_kernel, grid, block, 0, nullptr, y, nx, ny, nz);
    });
SSC_SIMT_LAUNCHER(
    "colliding_blocks",
    +[](int* y) { return cuda::launch(colliding_kernel, 2, 32, 0, nullptr, y); });
SSC_SIMT_LAUNCHER(
    "neighbour_blocks", +[](int* y, int* z, int blocks) {
      return cuda::launch(neighbour_kernel, blocks, 1, 0, nullptr, y, z);
    });
