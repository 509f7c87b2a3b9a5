// Neighbouring columns of a row that a thread has: one access of 8 or 16 bytes, or two of 16 for
// numbers of 8 bytes, where the row is aligned to it.
#pragma once

#include <cstdint>

#include "csrc/cuda/device/number.h"
#include "csrc/cuda/device/vector_access.h"

namespace ssc::cuda {

constexpr int kColumns = 4;

template <class T>
struct Columns {
  T at[kColumns];
};

// Elements of an access.
template <class X>
constexpr int kColumnElements = sizeof(X) == 8 ? 2 : kColumns;

// Whether columns 4 l of all rows are aligned to an access.
template <class X>
bool has_aligned_columns(const X* rows, int64_t stride) {
  constexpr uintptr_t kBytes = kColumnElements<X> * sizeof(X);
  return reinterpret_cast<uintptr_t>(rows) % kBytes == 0 && stride % kColumns == 0;
}

// All of the columns from `from` on, which is aligned.
template <class T, class X>
__device__ __forceinline__ Columns<T> read_whole(const X* from) {
  constexpr int kLoad = kColumnElements<X>;
  Columns<T> columns;
#pragma unroll
  for (int k = 0; k < kColumns; k += kLoad) {
    const auto part = load_vector<Elements<X, kLoad>>(from + k);
#pragma unroll
    for (int i = 0; i < kLoad; ++i) columns.at[k + i] = to_accumulator(part.at[i]);
  }
  return columns;
}

// The first `there` of them, and zeros for others.
template <class T, class X>
__device__ __forceinline__ Columns<T> read_part(const X* from, int64_t there) {
  Columns<T> x = {};
#pragma unroll
  for (int k = 0; k < kColumns; ++k) {
    if (k < there) x.at[k] = to_accumulator(from[k]);
  }
  return x;
}

template <class X>
__device__ __forceinline__ void write_whole(const Columns<X>& x, X* to) {
  constexpr int kStore = kColumnElements<X>;
#pragma unroll
  for (int k = 0; k < kColumns; k += kStore) {
    Elements<X, kStore> part;
#pragma unroll
    for (int i = 0; i < kStore; ++i) part.at[i] = x.at[k + i];
    store_vector(to + k, part);
  }
}

// Rounded to X, in half as many conversions where these are of pairs.
template <class X>
  requires(sizeof(X) == 2)
__device__ __forceinline__ void write_whole(const Columns<float>& x, X* to) {
  store_vector(to,
               uint2{to_storage_pair<X>(x.at[0], x.at[1]), to_storage_pair<X>(x.at[2], x.at[3])});
}

template <class X>
__device__ __forceinline__ void write_part(const Columns<X>& x, X* to, int64_t there) {
#pragma unroll
  for (int k = 0; k < kColumns; ++k) {
    if (k < there) to[k] = x.at[k];
  }
}

template <class T>
__device__ __forceinline__ void add_scaled(Columns<T>& sum, T factor, const Columns<T>& x) {
#pragma unroll
  for (int k = 0; k < kColumns; ++k) sum.at[k] += factor * x.at[k];
}

template <class T>
__device__ __forceinline__ Columns<T> scaled(T factor, Columns<T> x) {
#pragma unroll
  for (int k = 0; k < kColumns; ++k) x.at[k] *= factor;
  return x;
}

template <class X, class T>
__device__ __forceinline__ Columns<X> rounded(const Columns<T>& x) {
  Columns<X> to;
#pragma unroll
  for (int k = 0; k < kColumns; ++k) to.at[k] = to_storage<X>(x.at[k]);
  return to;
}

}  // namespace ssc::cuda
