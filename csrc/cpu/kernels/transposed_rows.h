// The way out of dWs, whose product comes transposed: a sample's row is a column there.
#pragma once

#include "csrc/cpu/kernels/simd.h"

namespace ssc::SSC_ISA {

template <class T, bool kAccumulate>
SSC_INLINE void scatter_transposed_as(const T* from, int64_t dim, const int64_t* slot,
                                      int64_t count, T* out, int64_t stride) {
  constexpr int L = kLanes<T>, P = kPanel<T>;
  for (int64_t s = 0; s < count; s += L) {
    const int64_t lanes = count - s < L ? count - s : L;
    int64_t d = 0;
    for (; d + L <= dim; d += L) {
      Vec<T> v[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) v[i] = load(from + (d + i) * P + s);
      transpose<T>(v);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        if (i >= lanes) break;
        T* to = out + slot[s + i] * stride + d;
        store<T>(to, kAccumulate ? load(to) + v[i] : v[i]);
      }
    }
    for (; d < dim; ++d) {
      for (int64_t i = 0; i < lanes; ++i) {
        T* to = out + slot[s + i] * stride + d;
        *to = (kAccumulate ? *to : T(0)) + from[d * P + s + i];
      }
    }
  }
}

// from[D][P] to rows out + slot[s] · stride, s < count: added where `accumulate`, else stored.
template <class T>
SSC_INLINE void scatter_transposed(const T* from, int64_t dim, const int64_t* slot, int64_t count,
                                   bool accumulate, T* out, int64_t stride) {
  if (accumulate) {
    scatter_transposed_as<T, true>(from, dim, slot, count, out, stride);
  } else {
    scatter_transposed_as<T, false>(from, dim, slot, count, out, stride);
  }
}

}  // namespace ssc::SSC_ISA
