// 16-byte loads and stores as one instruction each, with cache hints. V is a 16-byte type such as
// uint4 or float4, or any struct of 4, 8 or 16 bytes that is aligned to its size.
#pragma once

#include "csrc/cuda/device.h"

namespace ssc::cuda {

template <class V>
__device__ __forceinline__ V load_vector(const void* address) {
  static_assert(sizeof(V) == alignof(V) && sizeof(V) <= 16);
  return *static_cast<const V*>(address);
}

template <class V>
__device__ __forceinline__ void store_vector(void* address, V value) {
  static_assert(sizeof(V) == alignof(V) && sizeof(V) <= 16);
  *static_cast<V*>(address) = value;
}

// Read-only for the whole kernel (ld.global.nc): may stay in L1.
__device__ __forceinline__ uint4 load16_cached(const void* address) {
  return __ldg(static_cast<const uint4*>(address));
}
// Written once, read by a later kernel (st.global.cs).
__device__ __forceinline__ void store16_streaming(void* address, uint4 value) {
  __stcs(static_cast<uint4*>(address), value);
}

}  // namespace ssc::cuda
