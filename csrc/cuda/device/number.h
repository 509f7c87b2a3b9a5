// Numbers of the storage types as what is computed in.
#pragma once

#include <type_traits>

#include "csrc/cuda/device/accumulator.h"
#include "csrc/cuda/device/device.h"
#include "csrc/cuda/device/fast_math.h"

namespace ssc::cuda {

__device__ __forceinline__ float to_accumulator(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_accumulator(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_accumulator(float x) { return x; }
__device__ __forceinline__ double to_accumulator(double x) { return x; }

template <class T>
__device__ __forceinline__ T to_storage(typename AccumulatorOf<T>::Type x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 to_storage<__nv_bfloat16>(float x) {
  return __float2bfloat16(x);
}
template <>
__device__ __forceinline__ __half to_storage<__half>(float x) {
  return __float2half(x);
}

// Two 16-bit numbers as they lie in memory, in one conversion.
template <class T>
__device__ __forceinline__ unsigned to_storage_pair(float first, float second) {
  static_assert(sizeof(T) == 2);
  unsigned word;
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(first, second);
    memcpy(&word, &pair, sizeof(word));
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    memcpy(&word, &pair, sizeof(word));
  }
  return word;
}

// The largest power of two that is not above x, x finite and not negative; 0 if x is subnormal.
__device__ __forceinline__ float power_below(float x) {
  return __int_as_float(__float_as_int(x) & 0x7f800000);
}
__device__ __forceinline__ double power_below(double x) {
  return __longlong_as_double(__double_as_longlong(x) & 0x7ff0000000000000);
}

// The larger of two, in one instruction; NaN loses.
__device__ __forceinline__ float larger(float x, float y) { return fmaxf(x, y); }
__device__ __forceinline__ double larger(double x, double y) { return fmax(x, y); }

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
__device__ __forceinline__ float row_expm1(float x) { return expm1f(x); }
__device__ __forceinline__ double row_expm1(double x) { return expm1(x); }

// The tanh of capped logits: small ones keep their digits.
__device__ __forceinline__ float logit_tanh(float x) { return tanhf(x); }
__device__ __forceinline__ double logit_tanh(double x) { return tanh(x); }

}  // namespace ssc::cuda
