// The columns of a row that a lane has: 4 l to 4 l + 3 of each kSumWidth = 128, so that its random
// bits are one draw and sums over a row are the same as on the CPU.
#pragma once

#include <type_traits>

#include "csrc/core/row_update.h"
#include "csrc/cuda/device/columns.h"

namespace ssc::cuda {

static_assert(32 * kColumns == kSumWidth);

// Columns [c, c + 4) of a row that has `length`; zeros beyond. wide: `row` is aligned to them, and
// all of them are there.
template <bool kWide, class T, class X>
__device__ __forceinline__ Columns<T> read_columns(const X* row, int c, int length) {
  if constexpr (kWide) return read_whole<T>(row + c);
  return read_part<T>(row + c, length - c);
}

template <bool kWide, class X>
__device__ __forceinline__ void write_columns(const Columns<X>& x, X* row, int c, int length) {
  if constexpr (kWide) {
    write_whole(x, row + c);
  } else {
    write_part(x, row + c, length - c);
  }
}

// --- rounding to 16 bits --------------------------------------------------------------------------

// NaN if one of the columns is, and perhaps where some are infinite or very large.
__device__ __forceinline__ float with_any_nan(float sum, const Columns<float>& x) {
  return fmaf(x.at[0], x.at[1], fmaf(x.at[2], x.at[3], sum));
}

// NaN becomes the one of round_to_bf16, of which random bits change nothing: they don't reach the
// upper half. Nor do they reach that of infinity.
__device__ __forceinline__ void keep_nan(Columns<float>& x) {
#pragma unroll
  for (float& each : x.at) {
    if (each != each) each = __uint_as_float((__float_as_uint(each) | 0x400000u) & 0xffff0000u);
  }
}

// The bits of two bf16, as they lie in memory: round_to_bf16 is the upper half of a sum.
__device__ __forceinline__ unsigned round_pair(float x, float y, unsigned random) {
  return __byte_perm(__float_as_uint(x) + (random & 0xffffu), __float_as_uint(y) + (random >> 16),
                     0x7632);
}

// random: 16 bits for each column. For bf16 after keep_nan.
template <class X>
__device__ __forceinline__ Columns<X> rounded(const Columns<float>& x, uint2 random) {
  uint2 words;
  if constexpr (std::is_same_v<X, __nv_bfloat16>) {
    words = {round_pair(x.at[0], x.at[1], random.x), round_pair(x.at[2], x.at[3], random.y)};
  } else {
    const auto of = [&](int k, unsigned bits) {
      return round_to_fp16(__float_as_uint(x.at[k]), bits);
    };
    words.x = of(0, random.x & 0xffffu) | of(1, random.x >> 16) << 16;
    words.y = of(2, random.y & 0xffffu) | of(3, random.y >> 16) << 16;
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
