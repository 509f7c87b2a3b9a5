// log, log1p and expm1 in float64 that give the same bits on every device: additions, products and
// divisions only, each rounded on its own. All are within 3 ulp on the ranges that they state.
//
// log: x = 2^e m with m in [sqrt(1/2), sqrt(2)), f = m - 1, s = f / (2 + f), and
//   log(1 + f) = 2 atanh(s) = 2 s (1 + z P(z)),  z = s^2,
// P by interpolation at Chebyshev nodes of [0, 0.02944] (error of log below 5e-18 relative).
#pragma once

#include "csrc/core/lane.h"

namespace ssc {

constexpr double kLn2High = 0.6931471803691238;  // 32 bits, so that e * kLn2High is exact
constexpr double kLn2Low = 1.9082149292705877e-10;
constexpr double kLog2E = 1.4426950408889634;

// log(2^e (1 + f)) for |f| < 0.4143.
template <class L>
SSC_HD typename L::F log_of_parts(typename L::F f, typename L::F e) {
  using F = typename L::F;
  const F s = f / (f + 2.0);
  const F z = L::mul(s, s);
  F p = L::splat(0.07308224842521703);
  p = L::mul_add(p, z, L::splat(0.07665860800278021));
  p = L::mul_add(p, z, L::splat(0.09091444562630861));
  p = L::mul_add(p, z, L::splat(0.1111110556739754));
  p = L::mul_add(p, z, L::splat(0.14285714312987743));
  p = L::mul_add(p, z, L::splat(0.19999999999949752));
  p = L::mul_add(p, z, L::splat(0.3333333333333335));
  const F two_s = s + s;
  const F tail = L::mul_add(e, L::splat(kLn2Low), L::mul(two_s, L::mul(z, p)));
  return L::mul(e, L::splat(kLn2High)) + (two_s + tail);
}

template <class F>
struct LogParts {
  F f, e;
};

// x = 2^e (1 + f), for positive normal x. x = 0 gives e = -1023, f = 0: a log of about -709.
template <class L>
SSC_HD LogParts<typename L::F> log_parts(typename L::F x) {
  constexpr uint64_t kRootHalfBits = 0x3fe6a09e667f3bcdu;  // sqrt(1/2)
  const typename L::U bits = L::as_bits(x);
  const typename L::U biased = (bits + (kOneBits - kRootHalfBits)) >> 52;  // e + 1023
  const typename L::U m = bits - (biased << 52) + kOneBits;
  return {L::as_float(m) - 1.0, to_float<L>(biased) - 1023.0};
}

// log(x) for positive normal x.
template <class L>
SSC_HD typename L::F portable_log(typename L::F x) {
  const LogParts<typename L::F> parts = log_parts<L>(x);
  return log_of_parts<L>(parts.f, parts.e);
}

// log(1 + x) for x in [-1, 1], with full relative accuracy near 0; about -709 at x = -1.
template <class L>
SSC_HD typename L::F portable_log1p(typename L::F x) {
  using F = typename L::F;
  const LogParts<F> parts = log_parts<L>(x + 1.0);
  const auto small = (x > L::splat(-0.25)) & (x < L::splat(0.25));
  return log_of_parts<L>(small ? x : parts.f, small ? L::splat(0.0) : parts.e);
}

// exp(y) - 1 for y <= 0 (-1 below -60, where exp(y) is no longer visible beside 1): y = n ln2 + r,
// expm1(r) = r + r^2 P(r) with P interpolated on |r| <= ln2 / 2, expm1(y) = 2^n expm1(r) + 2^n - 1.
template <class L>
SSC_HD typename L::F portable_expm1(typename L::F y) {
  using F = typename L::F;
  constexpr double kRounder = 0x1.8p52;  // adding it rounds to an integer, kept in the low bits
  y = y < L::splat(-60.0) ? L::splat(-60.0) : y;
  const F shifted = L::mul_add(y, L::splat(kLog2E), L::splat(kRounder));
  const F n = shifted - kRounder;
  const F r = (y - L::mul(n, L::splat(kLn2High))) - L::mul(n, L::splat(kLn2Low));
  F p = L::splat(2.510038549551032e-08);
  p = L::mul_add(p, r, L::splat(2.7620088445409746e-07));
  p = L::mul_add(p, r, L::splat(2.7557268459997064e-06));
  p = L::mul_add(p, r, L::splat(2.4801521295954376e-05));
  p = L::mul_add(p, r, L::splat(0.00019841269863053618));
  p = L::mul_add(p, r, L::splat(0.0013888888917213717));
  p = L::mul_add(p, r, L::splat(0.008333333333330062));
  p = L::mul_add(p, r, L::splat(0.04166666666662413));
  p = L::mul_add(p, r, L::splat(0.16666666666666669));
  p = L::mul_add(p, r, L::splat(0.5000000000000001));
  const F expm1_r = L::mul_add(L::mul(r, r), p, r);
  const F scale = L::as_float((L::as_bits(shifted) << 52) + kOneBits);
  return L::mul_add(scale, expm1_r, scale - 1.0);
}

}  // namespace ssc
