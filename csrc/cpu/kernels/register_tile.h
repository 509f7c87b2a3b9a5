// The inner loop of all three matmuls: a register tile of M rows by two vectors.
#pragma once

#include <utility>

#include "csrc/cpu/kernels/prefetch.h"
#include "csrc/cpu/kernels/simd.h"
#include "csrc/cpu/kernels/word.h"

namespace ssc::SSC_ISA {

// One step of a matmul, in words: acc[i][:] += a[i · kRowStride] · b[0:P], P = 2 vectors.
template <class T, int M, int64_t kRowStride>
SSC_INLINE void multiply_add_step(Vec<T> (&acc)[M][2], const T* a, const T* b) {
  const Vec<T> b0 = load(b), b1 = load(b + kLanes<T>);
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
    const Vec<T> x = broadcast(a + i * kRowStride);
    multiply_add_words<T>(acc[i][0], x, b0);
    multiply_add_words<T>(acc[i][1], x, b1);
  }
}

// acc[i][:] += Σ_k a[k][i] · b[k][0:P] over `count` steps, a having M columns.
template <class T, int M>
SSC_INLINE void multiply_add(Vec<T> (&acc)[M][2], const T* a, const T* b, int64_t count,
                             Wanted& wanted) {
  int64_t k = 0;
  for (; k + kPrefetchInterval <= count; k += kPrefetchInterval) {
    __builtin_prefetch(wanted.read[0], 0, 2);
    __builtin_prefetch(wanted.read[1], 0, 2);
    __builtin_prefetch(wanted.write, 1, 3);
    wanted.read[0] += wanted.read_stride;
    wanted.read[1] += wanted.read_stride;
    wanted.write += wanted.write_stride;
#pragma GCC unroll 2
    for (int64_t j = 0; j < kPrefetchInterval; ++j, a += M, b += kPanel<T>) {
      multiply_add_step<T, M, 1>(acc, a, b);
    }
  }
  for (; k < count; ++k, a += M, b += kPanel<T>) multiply_add_step<T, M, 1>(acc, a, b);
}

// acc[i][:] += Σ_k a[i][k] · b[k][0:P] over the words of one panel's samples.
template <class T, int M>
SSC_INLINE void multiply_add_panel(Vec<T> (&acc)[M][2], const T* a, const T* b) {
#pragma GCC unroll 4
  for (int64_t k = 0; k < kPanel<T> / kWord<T>; ++k) {
    multiply_add_step<T, M, kPanel<T> / kWord<T>>(acc, a + k, b + k * kPanel<T>);
  }
}

template <class T, int M>
SSC_INLINE void clear_tile(Vec<T> (&acc)[M][2]) {
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) acc[i][0] = acc[i][1] = Vec<T>{};
}

template <class T, int M>
SSC_INLINE void load_tile(Vec<T> (&acc)[M][2], const T* from, int64_t stride) {
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
    acc[i][0] = load(from + i * stride);
    acc[i][1] = load(from + i * stride + kLanes<T>);
  }
}

template <class T, int M>
SSC_INLINE void store_tile(const Vec<T> (&acc)[M][2], T* to, int64_t stride) {
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
    store(to + i * stride, acc[i][0]);
    store(to + i * stride + kLanes<T>, acc[i][1]);
  }
}

// Calls Body<M>::run(args...) for the M that equals `rows`, 1 <= rows <= kTileRows.
template <template <int> class Body, class... Args, int... kM>
SSC_INLINE void with_rows_impl(int64_t rows, std::integer_sequence<int, kM...>, Args... args) {
  using Function = void (*)(Args...);
  static constexpr Function table[] = {Body<kM + 1>::run...};
  table[rows - 1](args...);
}
template <template <int> class Body, class... Args>
SSC_INLINE void with_rows(int64_t rows, Args... args) {
  with_rows_impl<Body, Args...>(rows, std::make_integer_sequence<int, kTileRows>{}, args...);
}

}  // namespace ssc::SSC_ISA
