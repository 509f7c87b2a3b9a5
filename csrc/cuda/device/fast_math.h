// Approximate functions of the special function unit, per call and never by a global flag. PTX ISA,
// "Floating Point Instructions: ex2" (2 ulp) and "lg2" (absolute error 2^-22 near 1, else relative
// 2^-22); denormals are flushed to zero. The executor's twins compute in double and round once.
#pragma once

#include "csrc/cuda/device/device.h"

#if defined(SSC_SIMT)
#include "csrc/simt/fast_math.h"
#else
namespace ssc::cuda {

__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float fast_log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace ssc::cuda
#endif

namespace ssc::cuda {

constexpr float kLog2E = 1.44269504088896340736f;

__device__ __forceinline__ float fast_exp(float x) { return fast_exp2(x * kLog2E); }

}  // namespace ssc::cuda
