// tanh and softplus of vectors, for the negatives' forms (loss/table.h).
#pragma once

#include "csrc/cpu/kernels/simd.h"

namespace ssc::SSC_ISA {

// tanh(x) = m / (m + 2) with m = exp(2x) − 1, of |x|, where nothing cancels; 1 far out, where float
// has no number closer to it.
template <class T>
SSC_INLINE Vec<T> tanh_of(Vec<T> x) {
  constexpr T kFar = sizeof(T) == 4 ? T(10) : T(20);
  const Vec<T> size = x < T(0) ? -x : x;
  const Vec<T> within = size > kFar ? splat(kFar) : size;  // NaN stays NaN
  const ExpParts<T> e = exp_parts<T>(within + within);
  // 2^n (1 + r tail) − 1, exactly r tail where n = 0.
  const Vec<T> power = scale_by_power<T>(splat(T(1)), e.shifted);
  const Vec<T> m = power * (e.r * e.tail) + (power - T(1));
  const Vec<T> t = m / (m + T(2));
  return x < T(0) ? -t : t;
}

// log(1 + q), 0 <= q <= 1: twice the area tangent of s = q / (2 + q) <= 1/3, as its power series.
template <class T>
SSC_INLINE Vec<T> log1p_of(Vec<T> q) {
  constexpr int kTerms = sizeof(T) == 4 ? 8 : 17;  // the next one is below half an ulp
  const Vec<T> s = q / (q + T(2));
  const Vec<T> w = s * s;
  Vec<T> p = splat(T(1) / T(2 * kTerms + 1));
#pragma GCC unroll 17
  for (int k = kTerms - 1; k >= 0; --k) p = p * w + T(1) / T(2 * k + 1);
  return (s + s) * p;
}

template <class T>
struct Softplus {
  Vec<T> value;  // log(1 + exp(x))
  Vec<T> slope;  // 1 / (1 + exp(−x))
};

template <class T>
SSC_INLINE Softplus<T> softplus_of(Vec<T> x) {
  const Vec<T> size = x < T(0) ? -x : x;
  const Vec<T> q = exp_in_range<T>(-size);
  const Vec<T> positive = x > T(0) ? x : Vec<T>{};
  const Vec<T> share = T(1) / (q + T(1));
  return {positive + log1p_of<T>(q), (x < T(0) ? q : splat(T(1))) * share};
}

}  // namespace ssc::SSC_ISA
