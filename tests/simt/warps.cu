// Collectives of a warp, whole, in part and wrong.
#include "csrc/cuda/device/device.h"
#include "csrc/simt/registry.h"

namespace {

namespace cuda = ssc::cuda;

constexpr unsigned kFull = 0xffffffffu;

// Inclusive prefix sums of n numbers by one block of whole warps: shuffles within, shared between.
__global__ void scan_kernel(const int* x, int* y, int n) {
  __shared__ int totals[32];
  const int t = threadIdx.x, lane = t % 32, warp = t / 32;
  int sum = t < n ? x[t] : 0;
  for (int d = 1; d < 32; d *= 2) {
    const int other = __shfl_up_sync(kFull, sum, d);
    if (lane >= d) sum += other;
  }
  if (lane == 31) totals[warp] = sum;
  __syncthreads();
  for (int w = 0; w < warp; ++w) sum += totals[w];
  if (t < n) y[t] = sum;
}

// Butterfly sums of doubles in segments of `width` lanes, and each segment's first number.
__global__ void segments_kernel(const double* x, double* y, double* first, int width) {
  double sum = x[threadIdx.x];
  first[threadIdx.x] = __shfl_sync(kFull, sum, 0, width);
  for (int d = width / 2; d > 0; d /= 2) sum += __shfl_xor_sync(kFull, sum, d, width);
  y[threadIdx.x] = sum;
}

// Eleven collectives of 32 lanes, a row of answers each.
__global__ void collectives_kernel(const int* x, int* y) {
  const int lane = threadIdx.x, v = x[lane];
  int equal = 0;
  const int answers[] = {
      static_cast<int>(__ballot_sync(kFull, v > 0)),
      __any_sync(kFull, v > 90),
      __all_sync(kFull, v > -100),
      static_cast<int>(__match_any_sync(kFull, v & 7)),
      static_cast<int>(__match_all_sync(kFull, v, &equal)),
      __reduce_add_sync(kFull, v),
      __reduce_min_sync(kFull, v),
      __reduce_max_sync(kFull, v),
      static_cast<int>(__reduce_max_sync(kFull, static_cast<unsigned>(v))),
      static_cast<int>(__reduce_or_sync(kFull, static_cast<unsigned>(v))),
      __shfl_down_sync(kFull, v, 5),
  };
  for (int i = 0; i < 11; ++i) y[32 * i + lane] = answers[i];
}

// Positive numbers to the front, in order: the odd lanes have left before, and the others name only
// each other in their masks.
__global__ void compact_kernel(const int* x, int* y, int* count) {
  const int lane = threadIdx.x;
  if (lane % 2 == 1) return;
  constexpr unsigned kEven = 0x55555555u;
  const unsigned positive = __ballot_sync(kEven, x[lane] > 0);
  if (x[lane] > 0) y[__popc(positive & ((1u << lane) - 1))] = x[lane];
  __syncwarp(kEven);
  if (lane == 0) *count = __popc(positive);
}

// Two groups of lanes that take different ways, each with collectives of its own.
__global__ void named_halves_kernel(const float* x, float* sums) {
  const int lane = threadIdx.x % 32;
  const unsigned mask = lane < 12 ? 0x00000fffu : 0xfffff000u;
  float sum = 0;
  if (lane < 12) {
    for (int i = 0; i < 12; ++i) sum += __shfl_sync(mask, x[threadIdx.x], i);
  } else {
    for (int i = 12; i < 32; ++i) sum += 2 * __shfl_sync(mask, x[threadIdx.x], i);
  }
  sums[threadIdx.x] = sum;
}

enum WarpMutation {
  kNone,
  kNoSyncwarp,
  kOutsideOwnMask,
  kExitedLane,
  kSourceOutsideMask,
  kDifferentMasks,
  kPartialSyncwarp,
};

// y[i] = x[(i + 1) % 32] through shared memory, synchronised by __syncwarp alone.
__global__ void rotate_kernel(const int* x, int* y, int mutation) {
  __shared__ int tile[32];
  const int lane = threadIdx.x;
  tile[lane] = x[lane];
  if (mutation == kPartialSyncwarp) {
    __syncwarp(lane < 16 ? 0x0000ffffu : 0xffff0000u);  // does not order lane 15 after lane 16
  } else if (mutation != kNoSyncwarp) {
    __syncwarp();
  }
  y[lane] = tile[(lane + 1) % 32];
}

__global__ void wrong_masks_kernel(int* y, int mutation) {
  const int lane = threadIdx.x;
  int v = lane;
  if (mutation == kOutsideOwnMask) v = __shfl_xor_sync(0x0000ffffu, v, 1);
  if (mutation == kExitedLane) {
    if (lane == 7) return;
    v = __shfl_xor_sync(kFull, v, 1);
  }
  if (mutation == kSourceOutsideMask && lane < 8) v = __shfl_sync(0x000000ffu, v, lane + 1);
  if (mutation == kDifferentMasks) v = __any_sync(lane < 4 ? kFull : 0xfffffff0u, v);
  y[lane] = v;
}

// One addition per distinct value and warp.
__global__ void aggregated_histogram_kernel(const int* x, int* bins, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const unsigned inside = __ballot_sync(kFull, i < n);
  if (i >= n) return;
  const unsigned peers = __match_any_sync(inside, x[i]);
  if (static_cast<int>(threadIdx.x % 32) == __ffs(peers) - 1) atomicAdd(&bins[x[i]], __popc(peers));
}

}  // namespace

SSC_SIMT_LAUNCHER(
    "warp_scan", +[](const int* x, int* y, int n) {
      return cuda::launch(scan_kernel, 1, (n + 31) / 32 * 32, 0, nullptr, x, y, n);
    });
SSC_SIMT_LAUNCHER(
    "segments", +[](const double* x, double* y, double* first, int width) {
      return cuda::launch(segments_kernel, 1, 32, 0, nullptr, x, y, first, width);
    });
SSC_SIMT_LAUNCHER(
    "collectives", +[](const int* x, int* y) {
      return cuda::launch(collectives_kernel, 1, 32, 0, nullptr, x, y);
    });
SSC_SIMT_LAUNCHER(
    "compact", +[](const int* x, int* y, int* count) {
      return cuda::launch(compact_kernel, 1, 32, 0, nullptr, x, y, count);
    });
SSC_SIMT_LAUNCHER(
    "named_halves", +[](const float* x, float* sums) {
      return cuda::launch(named_halves_kernel, 1, 64, 0, nullptr, x, sums);
    });
SSC_SIMT_LAUNCHER(
    "rotate", +[](const int* x, int* y, int mutation) {
      return cuda::launch(rotate_kernel, 1, 32, 0, nullptr, x, y, mutation);
    });
SSC_SIMT_LAUNCHER(
    "wrong_masks", +[](int* y, int mutation) {
      return cuda::launch(wrong_masks_kernel, 1, 32, 0, nullptr, y, mutation);
    });
SSC_SIMT_LAUNCHER(
    "aggregated_histogram", +[](const int* x, int* bins, int n, int blocks) {
      return cuda::launch(aggregated_histogram_kernel, blocks, 64, 0, nullptr, x, bins, n);
    });
