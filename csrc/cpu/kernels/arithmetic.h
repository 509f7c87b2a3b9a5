// The arithmetic of csrc/core/row_update.h for vectors and numbers: products, quotients and roots
// that are rounded one by one where -ffp-contract=off. Loops over columns of both.
#pragma once

#include "csrc/core/host_device.h"
#include "csrc/cpu/kernels/simd.h"

namespace ssc::SSC_ISA {

struct Arithmetic {
  template <class X, class Y>
  SSC_HD auto mul(X a, Y b) {
    return a * b;
  }
  template <class X, class Y>
  SSC_HD auto div(X a, Y b) {
    return a / b;
  }
  SSC_HD float root(float x) { return __builtin_sqrtf(x); }
  SSC_HD double root(double x) { return __builtin_sqrt(x); }
#if defined(__AVX512F__)
  SSC_HD Vec<float> root(Vec<float> x) { return (Vec<float>)_mm512_sqrt_ps((__m512)x); }
  SSC_HD Vec<double> root(Vec<double> x) { return (Vec<double>)_mm512_sqrt_pd((__m512d)x); }
#elif defined(__AVX2__)
  SSC_HD Vec<float> root(Vec<float> x) { return (Vec<float>)_mm256_sqrt_ps((__m256)x); }
  SSC_HD Vec<double> root(Vec<double> x) { return (Vec<double>)_mm256_sqrt_pd((__m256d)x); }
#else
  template <class V>
  SSC_HD V root(V x) {
    for (unsigned i = 0; i < sizeof(V) / sizeof(x[0]); ++i) x[i] = root(x[i]);
    return x;
  }
#endif
};

template <class T>
SSC_INLINE T splat_as(T x, T) {
  return x;
}
template <class T>
SSC_INLINE Vec<T> splat_as(T x, Vec<T>) {
  return splat(x);
}

// Calls f(V, c) for vectors of columns c < count and then for single ones.
template <class T, class F>
SSC_INLINE void for_columns(int64_t count, F&& f) {
  int64_t c = 0;
  for (; c + kLanes<T> <= count; c += kLanes<T>) f(Vec<T>{}, c);
  for (; c < count; ++c) f(T{}, c);
}

template <class T>
SSC_INLINE Vec<T> load_columns(const T* p, Vec<T>) {
  return load(p);
}
template <class T>
SSC_INLINE T load_columns(const T* p, T) {
  return *p;
}
template <class T>
SSC_INLINE void store_columns(T* p, Vec<T> v) {
  store(p, v);
}
template <class T>
SSC_INLINE void store_columns(T* p, T x) {
  *p = x;
}

}  // namespace ssc::SSC_ISA
