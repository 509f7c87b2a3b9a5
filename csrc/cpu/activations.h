// Functions of one number beside exp (simd.h), on vectors: what losses other than the softmax need.
#pragma once

#include "csrc/cpu/simd.h"

namespace ssc::SSC_ISA {

template <class T>
SSC_INLINE Vec<T> absolute(Vec<T> x) {
  return x < splat(T(0)) ? -x : x;
}

// log(1 + u) for u in [0, 1]: 2 atanh(s) = 2 s (1 + s^2/3 + s^4/5 + ...) with s = u / (2 + u), at
// most 1/3, so that a term is a ninth of the one before.
template <class T>
SSC_INLINE Vec<T> log1p_of_unit(Vec<T> u) {
  constexpr int kTerms = sizeof(T) == 4 ? 8 : 17;
  const Vec<T> s = u / (u + T(2));
  const Vec<T> z = s * s;
  Vec<T> p = splat(T(1) / (2 * kTerms + 1));
#pragma GCC unroll 17
  for (int k = kTerms - 1; k > 0; --k) p = p * z + T(1) / (2 * k + 1);
  return T(2) * (s + s * z * p);
}

// log(1 + exp(x)), 0 below kExpFloor.
template <class T>
SSC_INLINE Vec<T> softplus(Vec<T> x) {
  const Vec<T> positive = x > splat(T(0)) ? x : Vec<T>{};
  return positive + log1p_of_unit<T>(exp_in_range<T>(-absolute<T>(x)));
}

// 1 / (1 + exp(-x)), 0 below kExpFloor.
template <class T>
SSC_INLINE Vec<T> sigmoid(Vec<T> x) {
  const Vec<T> e = exp_in_range<T>(-absolute<T>(x));
  return (x < splat(T(0)) ? e : splat(T(1))) / (e + T(1));
}

// tanh(x): for small |x| Lambert's continued fraction x / (1 + x^2 / (3 + x^2 / (5 + ...))), which
// keeps the relative accuracy that (1 - e) / (1 + e) with e = exp(-2 |x|) has only for others.
template <class T>
SSC_INLINE Vec<T> hyperbolic_tangent(Vec<T> x) {
  constexpr T kSmall = T(0.5);
  constexpr int kDepth = sizeof(T) == 4 ? 5 : 9;
  const Vec<T> magnitude = absolute<T>(x);
  const Vec<T> e = exp_in_range<T>(T(-2) * magnitude);
  const Vec<T> large = (T(1) - e) / (T(1) + e);
  const Vec<T> y = x * x;
  Vec<T> f = splat(T(2 * kDepth + 1));
#pragma GCC unroll 9
  for (int k = kDepth - 1; k >= 0; --k) f = y / f + T(2 * k + 1);
  return magnitude < splat(kSmall) ? x / f : x < splat(T(0)) ? -large : large;
}

}  // namespace ssc::SSC_ISA
