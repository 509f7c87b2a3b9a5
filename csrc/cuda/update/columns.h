// The columns of a row that a lane has: 4 l to 4 l + 3 of each kSumWidth = 128, so that its random
// bits are one draw and sums over a row are the same as on the CPU.
#pragma once

#include "csrc/core/row_update.h"
#include "csrc/cuda/device/number.h"
#include "csrc/cuda/device/vector_access.h"

namespace ssc::cuda {

constexpr int kColumns = 4;

static_assert(32 * kColumns == kSumWidth);

template <class T>
struct Columns {
  T at[kColumns];
};

// Columns [c, c + 4) of a row that has `length`; zeros beyond. wide: `row` is aligned to them, and
// none or all of them are there.
template <bool kWide, class T, class X>
__device__ __forceinline__ Columns<T> read_columns(const X* row, int64_t c, int64_t length) {
  constexpr int kLoad = sizeof(X) == 8 ? 2 : kColumns;
  Columns<T> x = {};
  if constexpr (kWide) {
    if (c < length) {
#pragma unroll
      for (int k = 0; k < kColumns; k += kLoad) {
        const auto part = load_vector<Elements<X, kLoad>>(row + c + k);
#pragma unroll
        for (int i = 0; i < kLoad; ++i) x.at[k + i] = to_accumulator(part.at[i]);
      }
    }
  } else {
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      if (c + k < length) x.at[k] = to_accumulator(row[c + k]);
    }
  }
  return x;
}

template <bool kWide, class X>
__device__ __forceinline__ void write_columns(const Columns<X>& x, X* row, int64_t c,
                                              int64_t length) {
  constexpr int kStore = sizeof(X) == 8 ? 2 : kColumns;
  if constexpr (kWide) {
    if (c < length) {
#pragma unroll
      for (int k = 0; k < kColumns; k += kStore) {
        Elements<X, kStore> part;
#pragma unroll
        for (int i = 0; i < kStore; ++i) part.at[i] = x.at[k + i];
        store_vector(row + c + k, part);
      }
    }
  } else {
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      if (c + k < length) row[c + k] = x.at[k];
    }
  }
}

// --- rounding to 16 bits --------------------------------------------------------------------------

template <class X, class T>
__device__ __forceinline__ Columns<X> rounded(const Columns<T>& x) {
  Columns<X> to;
#pragma unroll
  for (int k = 0; k < kColumns; ++k) to.at[k] = to_storage<X>(x.at[k]);
  return to;
}

__device__ __forceinline__ __nv_bfloat16 round_with(float x, unsigned random, __nv_bfloat16) {
  const unsigned bits = round_to_bf16(__float_as_uint(x), random);
  return __ushort_as_bfloat16(static_cast<unsigned short>(bits));
}
__device__ __forceinline__ __half round_with(float x, unsigned random, __half) {
  const unsigned bits = round_to_fp16(__float_as_uint(x), random);
  return __ushort_as_half(static_cast<unsigned short>(bits));
}

// random: 16 bits for each column.
template <class X>
__device__ __forceinline__ Columns<X> rounded(const Columns<float>& x, uint64_t random) {
  Columns<X> to;
#pragma unroll
  for (int k = 0; k < kColumns; ++k) {
    to.at[k] = round_with(x.at[k], static_cast<unsigned>(random >> 16 * k) & 0xffffu, X{});
  }
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
