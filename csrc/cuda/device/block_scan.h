// Prefix sums over the threads of a block.
#pragma once

#include "csrc/cuda/device/device.h"

namespace ssc::cuda {

template <int kThreads>
struct ScanShared {
  static_assert(kThreads % 32 == 0);
  unsigned warp_sum[kThreads / 32];
};

struct PrefixSum {
  unsigned before;  // Σ over the threads before this one
  unsigned total;
};

// All threads of the block take part; afterwards `shared` is free.
template <int kThreads>
__device__ __forceinline__ PrefixSum prefix_sum(unsigned value, ScanShared<kThreads>& shared) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  unsigned inclusive = value;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const unsigned other = __shfl_up_sync(~0u, inclusive, offset);
    if (lane >= offset) inclusive += other;
  }
  if (lane == 31) shared.warp_sum[warp] = inclusive;
  __syncthreads();
  PrefixSum sum = {inclusive - value, 0};
#pragma unroll
  for (int w = 0; w < kThreads / 32; ++w) {
    const unsigned of_warp = shared.warp_sum[w];
    if (w < warp) sum.before += of_warp;
    sum.total += of_warp;
  }
  __syncthreads();
  return sum;
}

}  // namespace ssc::cuda
