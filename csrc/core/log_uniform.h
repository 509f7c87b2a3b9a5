// The log-uniform (Zipf) proposal over classes sorted by falling frequency:
//   q_k = log((k + 2) / (k + 1)) / log(C + 1),  k = 0 .. C - 1.
// Its distribution function at k is log(k + 1) / log(C + 1), so with u uniform in [0, 1)
//   k = floor(2^(u log2(C + 1))) - 1
// covers 0 .. C - 1, the last class included.
//
// The exponent y = u log2(C + 1) is a fixed-point number with 58 fractional bits, the high half of
// a 64 x 64-bit product: a double has no room for both the integer part of y and the resolution
// that classes near 2^40 need. 2^y is 2^(j/16) from a table times a polynomial over the rest, and
// the floor is a shift of its fraction. Only integer operations and correctly rounded products and
// sums: every device gives the same id for the same bits. C may be up to 2^52 - 1.
#pragma once

#include "csrc/core/lane.h"
#include "csrc/core/logit_correction.h"
#include "csrc/core/portable_math.h"

namespace ssc {

struct LogUniform {
  uint64_t num_classes;
  uint64_t log2_range;       // floor(2^58 log2(num_classes + 1)), up to the last two bits
  double inverse_log_range;  // 1 / log(num_classes + 1)
};

constexpr int kLog2FractionBits = 58;
constexpr uint64_t kLogUniformMaxClasses = (uint64_t{1} << 52) - 1;

constexpr double kExp2Table[16] = {// 2^(j / 16)
                                   1.0,
                                   1.0442737824274138,
                                   1.0905077326652577,
                                   1.1387886347566916,
                                   1.189207115002721,
                                   1.241857812073484,
                                   1.2968395546510096,
                                   1.3542555469368927,
                                   1.4142135623730951,
                                   1.4768261459394993,
                                   1.5422108254079407,
                                   1.6104903319492543,
                                   1.681792830507429,
                                   1.7562521603732995,
                                   1.8340080864093424,
                                   1.9152065613971474};

// log2(n) in fixed point, n >= 1: squaring the mantissa moves one more bit of the logarithm before
// the binary point. Integers only, so that every machine finds the same range.
SSC_HD uint64_t log2_fixed(uint64_t n) {
  uint64_t exponent = 63;
  while ((n >> 63) == 0) {
    n <<= 1;
    --exponent;
  }
  uint64_t result = exponent;
  for (int bit = 0; bit < kLog2FractionBits; ++bit) {
    const Product<uint64_t> square = ScalarLane::mul_wide<false>(n, n);
    const uint64_t carry = square.high >> 63;
    n = carry != 0 ? square.high : (square.high << 1) | (square.low >> 63);
    result = (result << 1) | carry;
  }
  return result;
}

// For 1 <= num_classes <= kLogUniformMaxClasses.
SSC_HD LogUniform make_log_uniform(uint64_t num_classes) {
  return {num_classes, log2_fixed(num_classes + 1),
          1.0 / portable_log<ScalarLane>(static_cast<double>(num_classes + 1))};
}

// The class drawn by 64 random bits.
template <class L>
SSC_HD typename L::U log_uniform_id(typename L::U x, const LogUniform& p,
                                    const double* exp2_table) {
  using U = typename L::U;
  using F = typename L::F;
  const U y = L::template mul_wide<false>(x, p.log2_range).high;
  const U whole = y >> kLog2FractionBits;
  const F base = L::lookup16(exp2_table, y >> (kLog2FractionBits - 4));
  // t in [0, 1): what is left of the fraction, in sixteenths. 2^(t/16) - 1 = t Q(t), with Q
  // interpolated at Chebyshev nodes (error 3e-17).
  const F t = L::as_float(((y >> 2) & kFractionMask) | kOneBits) - 1.0;
  F q = L::splat(9.35342561605361e-12);
  q = L::mul_add(q, t, L::splat(1.2713928266076342e-09));
  q = L::mul_add(q, t, L::splat(1.4676110416779805e-07));
  q = L::mul_add(q, t, L::splat(1.3550807755820948e-05));
  q = L::mul_add(q, t, L::splat(0.0009383847928110174));
  q = L::mul_add(q, t, L::splat(0.04332169878499655));
  const F power = L::mul_add(base, L::mul(t, q), base);  // 2^fraction, in [1, 2]
  // floor(2^whole power): power's 53-bit significand (2^53 if it rounded up to 2), shifted.
  const U significand = L::as_bits(power) - (kOneBits - (uint64_t{1} << 52));
  const U k_plus_1 = significand >> (L::splat(uint64_t{52}) - whole);
  const U last = L::splat(p.num_classes);
  return (k_plus_1 < last ? k_plus_1 : last) - 1;
}

// q_k, and kNoClass for k >= num_classes. log((k + 2) / (k + 1)) as log1p(1 / (k + 1)), which keeps
// its relative accuracy where the quotient would round to 1.
template <class L>
SSC_HD typename L::F log_uniform_probability(typename L::U id, const LogUniform& p) {
  const auto valid = id < L::splat(p.num_classes);
  const typename L::F n = to_float<L>(valid ? id : L::splat(uint64_t{0})) + 1.0;
  const typename L::F q = L::mul(portable_log1p<L>(1.0 / n), L::splat(p.inverse_log_range));
  return valid ? q : L::splat(kNoClass);
}

}  // namespace ssc
