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

// And where they do: once a row.
__device__ __forceinline__ float row_exp(float x) { return expf(x); }
__device__ __forceinline__ double row_exp(double x) { return exp(x); }
__device__ __forceinline__ float row_log(float x) { return logf(x); }
__device__ __forceinline__ double row_log(double x) { return log(x); }
__device__ __forceinline__ float row_log1p(float x) { return log1pf(x); }
__device__ __forceinline__ double row_log1p(double x) { return log1p(x); }

}  // namespace ssc::cuda
