// 16-byte loads and stores as one instruction each, with cache hints. V is a 16-byte type such as
// uint4 or float4, or any struct of 4, 8 or 16 bytes that is aligned to its size.
#pragma once

#include "csrc/cuda/device/device.h"

namespace ssc::cuda {

template <class V>
__device__ __forceinline__ V load_vector(const void* address) {
  static_assert(sizeof(V) == alignof(V) && sizeof(V) <= 16);
  return *static_cast<const V*>(address);
}

// To global memory. In assembly, because nvcc 13.0 takes the copy of a struct with an array apart
// for 7.5 to 9.0 and then stores it element by element, whatever type it is copied as. By a generic
// address: its conversion takes registers that the matmuls don't have.
template <class V>
__device__ __forceinline__ void store_vector(void* address, V value) {
  static_assert(sizeof(V) == alignof(V) && sizeof(V) <= 16);
#if !defined(SSC_SIMT)
  if constexpr (sizeof(V) >= 8) {
    unsigned word[sizeof(V) / 4];
    memcpy(word, &value, sizeof(V));
    if constexpr (sizeof(V) == 8) {
      asm volatile("st.v2.b32 [%0], {%1, %2};" ::"l"(address), "r"(word[0]), "r"(word[1])
                   : "memory");
    } else {
      asm volatile("st.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(word[0]), "r"(word[1]),
                   "r"(word[2]), "r"(word[3])
                   : "memory");
    }
    return;
  }
#endif
  *static_cast<V*>(address) = value;
}

template <class T, int kElements>
struct __align__(sizeof(T) * kElements) Elements {
  T at[kElements];
};

// Read-only for the whole kernel (ld.global.nc): may stay in L1.
__device__ __forceinline__ uint4 load16_cached(const void* address) {
  return __ldg(static_cast<const uint4*>(address));
}
// Written once, read by a later kernel (st.global.cs).
__device__ __forceinline__ void store16_streaming(void* address, uint4 value) {
  __stcs(static_cast<uint4*>(address), value);
}

}  // namespace ssc::cuda
