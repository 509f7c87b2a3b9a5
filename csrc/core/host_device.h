// Marks what g++ and nvcc both compile. Core functions have internal linkage and are always
// inlined, so that a copy compiled for AVX-512 can never be the one that the linker keeps for a CPU
// without it; the same holds for the static members of lanes (lane.h).
#pragma once

#if defined(__CUDACC__)
#define SSC_HD __host__ __device__ __forceinline__ static
#define SSC_MEMBER __host__ __device__ __forceinline__
#else
#define SSC_HD __attribute__((always_inline)) static inline
#define SSC_MEMBER __attribute__((always_inline)) inline
#endif

// Unrolls the loop that follows.
#if defined(__CUDACC__)
#define SSC_UNROLL _Pragma("unroll")
#else
#define SSC_UNROLL _Pragma("GCC unroll 16")
#endif
