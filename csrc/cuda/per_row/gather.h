// Gathers of whole rows of W by a warp: 16 bytes a lane and load, several rows in flight.
#pragma once

#include "csrc/cuda/device/number.h"
#include "csrc/cuda/device/vector_access.h"

namespace ssc::cuda {

constexpr int kGatherWarps = 8;   // of a block
constexpr int kRowsInFlight = 4;  // of a warp

// Elements of a load: 16 bytes where rows are aligned to that, else one.
template <class T, bool kWide>
constexpr int kLoadElements = kWide ? 16 / static_cast<int>(sizeof(T)) : 1;

template <class T>
bool rows_are_wide(const T* data, int64_t stride, int64_t dim) {
  constexpr int64_t kWidth = 16 / static_cast<int64_t>(sizeof(T));
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % kWidth == 0 && dim % kWidth == 0;
}

template <class A>
__device__ __forceinline__ A warp_sum(A x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}

}  // namespace ssc::cuda
