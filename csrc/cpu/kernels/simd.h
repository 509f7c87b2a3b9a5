// Vectors of one instruction set: GCC vector types, so one source serves SSE2, AVX2 and AVX-512
// (and Arm's NEON as `scalar`). SSC_ISA names the namespace.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
// The undefined pass-through operands of GCC's own AVX-512 headers (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "csrc/cpu/base/dtype.h"

#define SSC_INLINE static inline __attribute__((always_inline))

namespace ssc::SSC_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct SimdOf {
  static constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  typedef T Unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
};

template <class T>
using Vec = typename SimdOf<T>::Vector;

template <class T>
constexpr int kLanes = SimdOf<T>::kLanes;

// Register tile: kTileRows rows by two vectors. 28 accumulators of AVX-512's 32 registers, 12 of
// AVX2's 16; the rest hold the two streamed vectors and the broadcast.
#if defined(__AVX512F__)
constexpr int kTileRows = 14;
#elif defined(__AVX2__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 4;
#endif

// Samples in a panel, the unit in which sampled rows are packed.
template <class T>
constexpr int kPanel = 2 * kLanes<T>;

template <class T>
SSC_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};  // x − 0 is x bit for bit (x + 0 is not: it loses −0)
}

template <class T>
SSC_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename SimdOf<T>::Unaligned*>(p);
}

template <class T>
SSC_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename SimdOf<T>::Unaligned*>(p) = v;
}

template <class T>
SSC_INLINE Vec<T> maximum(Vec<T> a, Vec<T> b) {
  return a > b ? a : b;
}

template <class T>
SSC_INLINE T sum_lanes(Vec<T> v) {
  T total = 0;
  for (int i = 0; i < kLanes<T>; ++i) total += v[i];
  return total;
}

template <class T>
SSC_INLINE T max_lanes(Vec<T> v) {
  T most = v[0];
  for (int i = 1; i < kLanes<T>; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

// --- to 16-bit floats (from them: dtype.h) ----------------------------------------------------

SSC_INLINE BFloat16 to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

SSC_INLINE Float16 to_float16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};   // NaN
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to inf
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 puts the 10 bits at the bottom, rounded
    float value;
    std::memcpy(&value, &magnitude, 4);
    value += 0.5f;
    std::memcpy(&magnitude, &value, 4);
    return {static_cast<uint16_t>(sign | (magnitude - 0x3f000000u))};
  }
  magnitude += 0xfffu + ((magnitude >> 13) & 1u);  // round to nearest even
  return {static_cast<uint16_t>(sign | ((magnitude - 0x38000000u) >> 13))};
}

// --- loads and stores that convert -----------------------------------------------------------

template <class T, class S>
SSC_INLINE T get(const S* p) {
  if constexpr (sizeof(S) == sizeof(T)) {
    return *p;
  } else {
    return to_float(*p);
  }
}

SSC_INLINE void put(float* p, float x) { *p = x; }
SSC_INLINE void put(double* p, double x) { *p = x; }
SSC_INLINE void put(BFloat16* p, float x) { *p = to_bfloat16(x); }
SSC_INLINE void put(Float16* p, float x) { *p = to_float16(x); }

// kLanes<T> elements of storage type S as a vector of T.
template <class T, class S>
SSC_INLINE Vec<T> load_as(const S* p) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 2) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    if constexpr (__is_same(S, Float16)) return (Vec<T>)_mm512_cvtph_ps(raw);
    return (Vec<T>)_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(S) == 2) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    if constexpr (__is_same(S, Float16)) return (Vec<T>)_mm256_cvtph_ps(raw);
    return (Vec<T>)_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
  }
#endif
  Vec<T> out;
  if constexpr (sizeof(S) == sizeof(T)) {
    out = load(p);
  } else {
    for (int i = 0; i < kLanes<T>; ++i) out[i] = to_float(p[i]);
  }
  return out;
}

// A vector of float to 16 bits, rounded to nearest even.
#if defined(__AVX512F__)
SSC_INLINE void narrow(Float16* p, Vec<float> v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
// As bf16 in the upper half of each lane.
SSC_INLINE __m512i round_to_upper(__m512 v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
}
SSC_INLINE void narrow(BFloat16* p, Vec<float> v) {
  const __m512i bits = _mm512_srli_epi32(round_to_upper((__m512)v), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(bits));
}
#elif defined(__AVX2__)
SSC_INLINE void narrow(Float16* p, Vec<float> v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
SSC_INLINE void narrow(BFloat16* p, Vec<float> v) {
  const __m256i bits = _mm256_castps_si256((__m256)v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps((__m256)v, (__m256)v, _CMP_UNORD_Q));
  const __m256i wide = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(p),
      _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)));
}
#endif

template <class T, class S>
SSC_INLINE void store_as(S* p, Vec<T> v) {
#if defined(__AVX2__)
  if constexpr (sizeof(S) == 2) {
    narrow(p, v);
    return;
  }
#endif
  if constexpr (sizeof(S) == sizeof(T)) {
    store(p, v);
  } else {
    for (int i = 0; i < kLanes<T>; ++i) put(p + i, v[i]);
  }
}

// The first `count` < kLanes elements; the other lanes are 0.
template <class T, class S>
SSC_INLINE Vec<T> load_head(const S* p, int64_t count) {
  Vec<T> out{};
  for (int64_t i = 0; i < count; ++i) out[i] = get<T>(p + i);
  return out;
}

// --- exp --------------------------------------------------------------------------------------

// Below the floor exp counts as 0: far under the rounding of a sum that is at least 1, and it
// keeps subnormal numbers, which cost 100 cycles each, out of the matmuls. Above the ceiling a
// row's reference point is moved up (see kernels/score.cpp).
template <class T>
constexpr T kExpFloor = sizeof(T) == 4 ? T(-60) : T(-600);
template <class T>
constexpr T kExpCeiling = sizeof(T) == 4 ? T(40) : T(400);

// exp(x) = 2^n (1 + r · tail), |r| <= ln2 / 2, for x <= kExpCeiling: Cody-Waite reduction x = n ln2
// + r, and the Taylor polynomial of (exp(r) − 1) / r, whose next term is below half an ulp there
// (r^8 / 8! < 2^-27 in float, r^14 / 14! < 2^-57 in double).
template <class T>
struct ExpParts {
  Vec<T> r, tail;
  Vec<T> shifted;  // n in its low bits
};
template <class T>
SSC_INLINE ExpParts<T> exp_parts(Vec<T> x) {
  constexpr bool is_float = sizeof(T) == 4;
  constexpr T kLog2e = T(1.4426950408889634074);
  constexpr T kLn2High = is_float ? T(0x1.62e4p-1) : T(0x1.62e42fefa0000p-1);
  constexpr T kLn2Low = is_float ? T(0x1.7f7d1cf79abcap-20) : T(0x1.cf79abc9e3b39p-40);
  constexpr T kRounder = is_float ? T(0x1.8p23) : T(0x1.8p52);  // adding it rounds to an integer
  const Vec<T> shifted = x * kLog2e + kRounder;
  const Vec<T> n = shifted - kRounder;
  const Vec<T> r = x - n * kLn2High - n * kLn2Low;
  Vec<T> p;
  if constexpr (is_float) {
    p = splat(T(1.0 / 5040));
  } else {
    p = splat(T(1.0 / 6227020800.0));
    p = p * r + T(1.0 / 479001600.0);
    p = p * r + T(1.0 / 39916800.0);
    p = p * r + T(1.0 / 3628800.0);
    p = p * r + T(1.0 / 362880.0);
    p = p * r + T(1.0 / 40320.0);
    p = p * r + T(1.0 / 5040.0);
  }
  p = p * r + T(1.0 / 720);
  p = p * r + T(1.0 / 120);
  p = p * r + T(1.0 / 24);
  p = p * r + T(1.0 / 6);
  p = p * r + T(0.5);
  p = p * r + T(1);
  return {r, p, shifted};
}

// v · 2^n: adds n, the low bits of `shifted`, to the exponent field. Unsigned: far below the floor
// the sum wraps, and is not used.
template <class T>
SSC_INLINE Vec<T> scale_by_power(Vec<T> v, Vec<T> shifted) {
  if constexpr (sizeof(T) == 4) {
    typedef uint32_t Int __attribute__((vector_size(kVectorBytes)));
    return (Vec<T>)((Int)v + ((Int)shifted << 23));
  } else {
    typedef uint64_t Int __attribute__((vector_size(kVectorBytes)));
    return (Vec<T>)((Int)v + ((Int)shifted << 52));
  }
}

// exp(x) for x <= kExpCeiling, 0 below kExpFloor, NaN for NaN; within 2 ulp.
template <class T>
SSC_INLINE Vec<T> exp_in_range(Vec<T> x) {
  const ExpParts<T> e = exp_parts<T>(x);
  const Vec<T> p = scale_by_power<T>(e.tail * e.r + T(1), e.shifted);
  return x < kExpFloor<T> ? Vec<T>{} : p;
}

// --- transposition ----------------------------------------------------------------------------

template <class T>
using MaskElement = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

template <class T>
struct ShuffleMask {
  typedef MaskElement<T> Vector __attribute__((vector_size(kVectorBytes)));
};

// One butterfly round: exchanges the off-diagonal blocks of size kHalf.
template <class T, int kHalf, int... kLane>
SSC_INLINE void exchange_blocks(Vec<T> (&v)[kLanes<T>], std::integer_sequence<int, kLane...>) {
  constexpr int n = kLanes<T>;
  constexpr typename ShuffleMask<T>::Vector low = {
      ((kLane & kHalf) != 0 ? n + (kLane ^ kHalf) : kLane)...};
  constexpr typename ShuffleMask<T>::Vector high = {
      ((kLane & kHalf) != 0 ? n + kLane : kLane ^ kHalf)...};
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) {
    if ((i & kHalf) != 0) continue;
    const Vec<T> a = v[i], b = v[i + kHalf];
    v[i] = __builtin_shuffle(a, b, low);
    v[i + kHalf] = __builtin_shuffle(a, b, high);
  }
}

// v[i][j] <- v[j][i] for kLanes vectors of kLanes elements, in log2(kLanes) rounds.
template <class T, int kHalf = kLanes<T> / 2>
SSC_INLINE void transpose(Vec<T> (&v)[kLanes<T>]) {
  if constexpr (kHalf >= 1) {
    exchange_blocks<T, kHalf>(v, std::make_integer_sequence<int, kLanes<T>>{});
    transpose<T, kHalf / 2>(v);
  }
}

}  // namespace ssc::SSC_ISA
