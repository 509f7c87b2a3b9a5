// Numbers of the storage types as what is computed in.
#pragma once

#include "csrc/cuda/device.h"
#include "csrc/cuda/fast_math.h"

namespace ssc::cuda {

__device__ __forceinline__ float to_accumulator(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_accumulator(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_accumulator(float x) { return x; }
__device__ __forceinline__ double to_accumulator(double x) { return x; }

// exp where a few ulp don't matter: inside sums of many.
__device__ __forceinline__ float sum_exp(float x) { return fast_exp(x); }
__device__ __forceinline__ double sum_exp(double x) { return exp(x); }

}  // namespace ssc::cuda
