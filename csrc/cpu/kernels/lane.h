// The lanes (csrc/core/lane.h) of one instruction set: eight numbers at a time with AVX-512, four
// with AVX2, and the scalar lane elsewhere. Included by kernels that give the same bits everywhere.
#pragma once

#if defined(__x86_64__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // g++ 12 warns about its own intrinsics
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#include "csrc/core/lane.h"
#include "csrc/cpu/kernels/simd.h"

namespace ssc::SSC_ISA {

struct OneLane : ScalarLane {
  static constexpr int kWidth = 1;

  SSC_HD void store_interleaved(uint64_t* out, U a, U b) {
    out[0] = a;
    out[1] = b;
  }
  SSC_HD U iota() { return 0; }
  SSC_HD U load_bits(const uint64_t* p) { return *p; }
  SSC_HD U load_bits(const int64_t* p) { return static_cast<U>(*p); }
  SSC_HD F load_float(const double* p) { return *p; }
  SSC_HD void put_number(int64_t* p, U x) { *p = static_cast<int64_t>(x); }
  SSC_HD void put_number(double* p, F x) { *p = x; }
  SSC_HD void put_number(float* p, F x) { *p = static_cast<float>(x); }
};

#if defined(__AVX512F__) || defined(__AVX2__)

struct VectorLane {
  using U = Vec<uint64_t>;
  using F = Vec<double>;
  static constexpr int kWidth = kLanes<uint64_t>;

  SSC_HD U splat(uint64_t x) { return x - U{}; }
  SSC_HD F splat(double x) { return x - F{}; }
  SSC_HD F mul(F a, F b) { return a * b; }
  SSC_HD F mul_add(F a, F b, F c) { return a * b + c; }  // -ffp-contract=off keeps them apart
  SSC_HD U as_bits(F x) { return (U)x; }
  SSC_HD F as_float(U x) { return (F)x; }

  // 64 x 64 bits from four products of 32; no intermediate sum overflows.
  template <bool kNarrow>
  SSC_HD Product<U> mul_wide(U x, uint64_t c) {
    const U x_high = x >> 32;
    const U low = mul_low32(x, splat(c));
    if constexpr (kNarrow) {
      const U middle = mul_low32(x_high, splat(c)) + (low >> 32);
      return {middle >> 32, (middle << 32) | (low & kLow32)};
    }
    const U c_high = splat(c >> 32);
    const U cross = mul_low32(x_high, splat(c));
    const U middle = (low >> 32) + (cross & kLow32) + mul_low32(x, c_high);
    return {mul_low32(x_high, c_high) + (cross >> 32) + (middle >> 32),
            (middle << 32) | (low & kLow32)};
  }

#if defined(__AVX512F__)
  SSC_HD U mul_low32(U a, U b) { return (U)_mm512_mul_epu32((__m512i)a, (__m512i)b); }
  SSC_HD F lookup16(const double* table, U index) {
    return (F)_mm512_permutex2var_pd(_mm512_loadu_pd(table), (__m512i)index,
                                     _mm512_loadu_pd(table + 8));
  }
  SSC_HD U gather(const uint64_t* table, U index) {
    return (U)_mm512_i64gather_epi64((__m512i)index, table, 8);
  }
  // a0 b0 a1 b1 ...
  SSC_HD void store_interleaved(uint64_t* out, U a, U b) {
    const U first = {0, 8, 1, 9, 2, 10, 3, 11};
    const U second = {4, 12, 5, 13, 6, 14, 7, 15};
    store(out, (U)_mm512_permutex2var_epi64((__m512i)a, (__m512i)first, (__m512i)b));
    store(out + 8, (U)_mm512_permutex2var_epi64((__m512i)a, (__m512i)second, (__m512i)b));
  }
  SSC_HD U iota() { return U{0, 1, 2, 3, 4, 5, 6, 7}; }
#else
  SSC_HD U mul_low32(U a, U b) { return (U)_mm256_mul_epu32((__m256i)a, (__m256i)b); }
  SSC_HD F lookup16(const double* table, U index) {
    return (F)_mm256_i64gather_pd(table, (__m256i)(index & 15), 8);
  }
  SSC_HD U gather(const uint64_t* table, U index) {
    return (U)_mm256_i64gather_epi64(reinterpret_cast<const long long*>(table), (__m256i)index, 8);
  }
  SSC_HD void store_interleaved(uint64_t* out, U a, U b) {
    const __m256i even = _mm256_unpacklo_epi64((__m256i)a, (__m256i)b);  // a0 b0 a2 b2
    const __m256i odd = _mm256_unpackhi_epi64((__m256i)a, (__m256i)b);   // a1 b1 a3 b3
    store(out, (U)_mm256_permute2x128_si256(even, odd, 0x20));
    store(out + 4, (U)_mm256_permute2x128_si256(even, odd, 0x31));
  }
  SSC_HD U iota() { return U{0, 1, 2, 3}; }
#endif

  SSC_HD U load_bits(const uint64_t* p) { return load(p); }
  SSC_HD U load_bits(const int64_t* p) { return (U)load(p); }
  SSC_HD F load_float(const double* p) { return load(p); }
  SSC_HD void put_number(int64_t* p, U x) { store(p, (Vec<int64_t>)x); }
  SSC_HD void put_number(double* p, F x) { store(p, x); }
  SSC_HD void put_number(float* p, F x) {
#if defined(__AVX512F__)
    _mm256_storeu_ps(p, _mm512_cvtpd_ps((__m512d)x));
#else
    _mm_storeu_ps(p, _mm256_cvtpd_ps((__m256d)x));
#endif
  }
};

using Lane = VectorLane;
constexpr int kPhiloxChains =
    kVectorBytes == 64 ? 4 : 2;  // enough to hide the multiplier's latency

#else

using Lane = OneLane;
constexpr int kPhiloxChains = 1;

#endif

}  // namespace ssc::SSC_ISA
