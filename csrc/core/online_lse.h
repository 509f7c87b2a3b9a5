// The logsumexp of numbers that come in parts: (max, sum) with Σ_j exp(z_j) = exp(max) · sum, and
// how two parts merge. Milakov, Gimelshein: "Online normalizer calculation for softmax", 2018,
// https://arxiv.org/abs/1805.02867
//
// The empty part is (−inf, 0), and −inf is not subtracted from itself, so a row without terms has
// the sum 0. A +inf or NaN term makes the sum NaN, as torch's cross entropy has it.
#pragma once

#include "csrc/core/host_device.h"

namespace ssc {

template <class T>
struct OnlineLse {
  T max, sum;
};

template <class T>
SSC_HD OnlineLse<T> empty_lse() {
  return {-static_cast<T>(__builtin_inf()), T(0)};
}

// The reference point of exponents.
template <class T>
SSC_HD T lse_reference(T max) {
  return max == -static_cast<T>(__builtin_inf()) ? T(0) : max;
}

// exp is the caller's: a device function may be faster than the host's.
template <class T, class Exp>
SSC_HD OnlineLse<T> merge_lse(const OnlineLse<T>& a, const OnlineLse<T>& b, Exp exp) {
  const T max = a.max > b.max ? a.max : b.max;
  const T reference = lse_reference(max);
  return {max, a.sum * exp(a.max - reference) + b.sum * exp(b.max - reference)};
}

}  // namespace ssc
