// log n_k, what a sampled logit is corrected by: n_k is the expected number of times that class k
// is in one draw of S samples.
//   with replacement        n_k = S q_k
//   S distinct classes      n_k = 1 - (1 - q_k)^t = -expm1(t log1p(-q_k)),  t the number of draws
// (Jean et al. 2015, https://arxiv.org/abs/1412.2007, for the corrected loss).
#pragma once

#include "csrc/core/lane.h"
#include "csrc/core/portable_math.h"

namespace ssc {

struct LogCount {
  bool distinct;
  double tries;            // t, if distinct; infinity where every class is drawn
  double log_num_samples;  // log S, if not
  double log_zero;         // what log n is for q = 0: -inf, or 0 in a correction
};

SSC_HD LogCount log_count_with_replacement(uint64_t num_samples) {
  return {false, 0.0, portable_log<ScalarLane>(static_cast<double>(num_samples)), -__builtin_inf()};
}
SSC_HD LogCount log_count_distinct(double tries) { return {true, tries, 0.0, -__builtin_inf()}; }

// A class that is never drawn has no log n to take off a logit: that of a target stays as it is.
SSC_HD LogCount as_correction(LogCount count) {
  count.log_zero = 0.0;
  return count;
}

// The same of a log count that comes from anywhere.
template <class T>
SSC_HD T correction_of(T log_count) {
  return log_count == -static_cast<T>(__builtin_inf()) ? T(0) : log_count;
}

// Stands for the probability of an id outside [0, C), a row to be ignored.
constexpr double kNoClass = -1.0;

// log n of a class of probability q (0, or a normal number); 0, which corrects nothing, for
// kNoClass, and NaN for what is no probability. Above 1 by more than a rounding error is none.
template <class L>
SSC_HD typename L::F log_expected_count(typename L::F q, const LogCount& count) {
  using F = typename L::F;
  F result;
  if (count.distinct) {
    const F log_missed = L::mul(L::splat(count.tries), portable_log1p<L>(-q));
    result = portable_log<L>(-portable_expm1<L>(log_missed));
  } else {
    result = portable_log<L>(q) + count.log_num_samples;
  }
  const F none = q == L::splat(kNoClass) ? L::splat(0.0) : L::splat(__builtin_nan(""));
  const F without = q == L::splat(0.0) ? L::splat(count.log_zero) : none;
  return (q > L::splat(0.0)) & (q < L::splat(2.0)) ? result : without;
}

// The exponential race: E / q, the time at which class k first arrives when classes arrive at rate
// q; the S earliest are distributed as the first S distinct draws. x: 64 random bits of class k.
// E = -log(u) with u an odd multiple of 2^-53, so 0 < u < 1. Infinite for q = 0 and for what is no
// probability: sorting NaN would be undefined.
template <class L>
SSC_HD typename L::F arrival_time(typename L::U x, typename L::F q) {
  const typename L::F u = L::mul(to_float<L>(x >> 12) + 0.5, L::splat(0x1p-52));
  const typename L::F time = -portable_log<L>(u) / q;
  return q > L::splat(0.0) ? time : L::splat(__builtin_inf());
}

}  // namespace ssc
