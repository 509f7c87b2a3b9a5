// The columns of a row that a lane has: 4 l to 4 l + 3 of each kSumWidth = 128, so that its random
// bits are one draw and sums over a row are the same as on the CPU.
#pragma once

#include <type_traits>

#include "csrc/core/row_update.h"
#include "csrc/cuda/device/columns.h"

namespace ssc::cuda {

static_assert(32 * kColumns == kSumWidth);

// Columns [c, c + 4) of a row that has `length`; zeros beyond. wide: `row` is aligned to them, and
// none or all of them are there.
template <bool kWide, class T, class X>
__device__ __forceinline__ Columns<T> read_columns(const X* row, int64_t c, int64_t length) {
  if constexpr (!kWide) return read_part<T>(row + c, length - c);
  if (c < length) return read_whole<T>(row + c);
  return {};
}

template <bool kWide, class X>
__device__ __forceinline__ void write_columns(const Columns<X>& x, X* row, int64_t c,
                                              int64_t length) {
  if constexpr (!kWide) {
    write_part(x, row + c, length - c);
  } else if (c < length) {
    write_whole(x, row + c);
  }
}

// --- rounding to 16 bits --------------------------------------------------------------------------

__device__ __forceinline__ unsigned round_with(float x, unsigned random, __nv_bfloat16) {
  return round_to_bf16(__float_as_uint(x), random);
}
__device__ __forceinline__ unsigned round_with(float x, unsigned random, __half) {
  return round_to_fp16(__float_as_uint(x), random);
}

__device__ __forceinline__ bool all_finite(const Columns<float>& x) {
  float zero = 0;
#pragma unroll
  for (const float each : x.at) zero += each * 0.0f;
  return zero == 0.0f;
}

// The bits of two bf16, as they lie in memory, of which round_to_bf16 is the upper half of a sum.
__device__ __forceinline__ unsigned round_finite(float x, float y, unsigned random) {
  const unsigned first = __float_as_uint(x) + (random & 0xffffu);
  const unsigned second = __float_as_uint(y) + (random >> 16);
  return first >> 16 | (second & 0xffff0000u);
}

// random: 16 bits for each column.
template <class X>
__device__ __forceinline__ Columns<X> rounded(const Columns<float>& x, uint64_t random) {
  const auto low = static_cast<unsigned>(random), high = static_cast<unsigned>(random >> 32);
  uint2 words;
  if (std::is_same_v<X, __nv_bfloat16> && all_finite(x)) {
    words.x = round_finite(x.at[0], x.at[1], low);
    words.y = round_finite(x.at[2], x.at[3], high);
  } else {
    words.x = round_with(x.at[0], low & 0xffffu, X{}) | round_with(x.at[1], low >> 16, X{}) << 16;
    words.y = round_with(x.at[2], high & 0xffffu, X{}) | round_with(x.at[3], high >> 16, X{}) << 16;
  }
  Columns<X> to;
  memcpy(static_cast<void*>(to.at), &words, sizeof(words));
  return to;
}

// The sum over a row of the columns of all lanes, for all of them: in halves, as kSumWidth says.
template <class T>
__device__ __forceinline__ T sum_of_columns(Columns<T> x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
#pragma unroll
    for (int k = 0; k < kColumns; ++k) x.at[k] += __shfl_xor_sync(~0u, x.at[k], lanes);
  }
  return (x.at[0] + x.at[2]) + (x.at[1] + x.at[3]);
}

}  // namespace ssc::cuda
