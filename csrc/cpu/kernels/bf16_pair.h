// word.h for AVX512-BF16: a word is a pair of bf16, carried in the lanes of a vector of float and
// never computed with as such. Products are exact and sums are float; E is rounded to bf16 on the
// way, P = coefficient · E once more for dWs, where H then enters as it is. H and W are bf16, or
// float32 that is rounded when it is packed.
//
// Two functions are instructions of AVX512-BF16: dot_pairs and round_to_pairs. A build for tests
// without them (SSC_EMULATE_BF16 in CMakeLists.txt) replaces just these by what Intel's manual says
// they do, so that every other line runs on any CPU with AVX-512.
#pragma once

#include "csrc/cpu/kernels/simd.h"

namespace ssc::SSC_ISA {

using Words = Vec<float>;

SSC_INLINE __m512i bits_of(Words v) { return _mm512_castps_si512((__m512)v); }
SSC_INLINE Words words_of(__m512i v) { return (Words)_mm512_castsi512_ps(v); }

// Where each of 32 bf16 comes from: of one vector (0 to 31) or of another (32 to 63).
struct Lanes16 {
  alignas(64) uint16_t from[32];
};

SSC_INLINE __m512i permute(__m512i a, __m512i b, const Lanes16& lanes) {
  return _mm512_permutex2var_epi16(a, _mm512_load_si512(lanes.from), b);
}

// Subnormal numbers become zeros of their sign.
SSC_INLINE __m512 flush_subnormal(__m512i bits) {
  const __mmask16 tiny = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
  return _mm512_castsi512_ps(
      _mm512_mask_and_epi32(bits, tiny, bits, _mm512_set1_epi32(static_cast<int>(0x80000000u))));
}

#if defined(__AVX512BF16__)

// sum + Σ of the two products in each word.
SSC_INLINE Words dot_pairs(Words sum, Words a, Words b) {
  return (Words)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

// 32 bf16: those of `low`, then those of `high`, rounded to nearest even.
SSC_INLINE __m512i round_to_pairs(Words low, Words high) {
  return (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
}

#else

// The odd elements' product is added first; both additions round to nearest even.
SSC_INLINE Words dot_pairs(Words sum, Words a, Words b) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  __m512 out = flush_subnormal(bits_of(sum));
  out = _mm512_fmadd_ps(flush_subnormal(_mm512_and_si512(bits_of(a), upper)),
                        flush_subnormal(_mm512_and_si512(bits_of(b), upper)), out);
  out = flush_subnormal(_mm512_castps_si512(out));
  out = _mm512_fmadd_ps(flush_subnormal(_mm512_slli_epi32(bits_of(a), 16)),
                        flush_subnormal(_mm512_slli_epi32(bits_of(b), 16)), out);
  return (Words)flush_subnormal(_mm512_castps_si512(out));
}

constexpr Lanes16 upper_halves() {
  Lanes16 lanes{};
  for (int i = 0; i < 32; ++i) lanes.from[i] = static_cast<uint16_t>(2 * i + 1);
  return lanes;
}

SSC_INLINE __m512i round_to_pairs(Words low, Words high) {
  static constexpr Lanes16 kUpper = upper_halves();
  return permute(round_to_upper(flush_subnormal(bits_of(low))),
                 round_to_upper(flush_subnormal(bits_of(high))), kUpper);
}

#endif

template <class T>
constexpr int kWord = 2;

// Parts of a float32 number: its nearest bf16, and in the namespace amx_split the nearest bf16 to
// what is left. Then x y is x1 y1 + x1 y2 + x2 y1 within 2^-15 |x y|: rounding leaves 2^-17 |x| and
// 2^-17 |y|, and x2 y2 is at most 2^-16 |x y|.
#if defined(SSC_SPLIT)
constexpr int kParts = 2;
#else
constexpr int kParts = 1;
#endif

// x less the parts before; nothing where the first part is infinite.
template <int kPart>
SSC_INLINE Words part_of(Words x) {
  if constexpr (kPart == 0) return x;
  const __m256i halves = _mm512_castsi512_si256(round_to_pairs(x, x));
  const __m512i first = _mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
  const __m512i kInfinity = _mm512_set1_epi32(0x7f800000);
  const __mmask16 finite = _mm512_cmpneq_epi32_mask(_mm512_and_si512(first, kInfinity), kInfinity);
  return (Words)_mm512_maskz_sub_ps(finite, (__m512)x, _mm512_castsi512_ps(first));
}

template <int kPart>
SSC_INLINE Words round_part(Words low, Words high) {
  return words_of(round_to_pairs(part_of<kPart>(low), part_of<kPart>(high)));
}

SSC_INLINE Words broadcast(const float* word) {
  int32_t bits;
  std::memcpy(&bits, word, sizeof bits);
  return words_of(_mm512_set1_epi32(bits));
}

template <class T>
SSC_INLINE void multiply_add_words(Words& sum, Words a, Words b) {
  sum = dot_pairs(sum, a, b);
}

template <class T, int kPart>
SSC_INLINE Words load_words(const BFloat16* p) {
  return kPart == 0 ? words_of(_mm512_loadu_si512(p)) : Words{};
}

template <class T, int kPart>
SSC_INLINE Words load_words_head(const BFloat16* p, int64_t count) {
  if constexpr (kPart > 0) return Words{};
  return words_of(_mm512_maskz_loadu_epi16((uint32_t{1} << count) - 1, p));
}

constexpr __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : count > 0 ? (1 << count) - 1 : 0);
}

// The first `count` of 16 numbers, the others being 0.
SSC_INLINE Words load_first(const float* p, int64_t count) {
  return (Words)_mm512_maskz_loadu_ps(first_lanes(count), p);
}
SSC_INLINE Words load_first(const BFloat16* p, int64_t count) {
  const __m256i halves = _mm256_maskz_loadu_epi16(first_lanes(count), p);
  return words_of(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

template <class T, int kPart>
SSC_INLINE Words load_words(const float* p) {
  return round_part<kPart>(load(p), load(p + kLanes<float>));
}

template <class T, int kPart>
SSC_INLINE Words load_words_head(const float* p, int64_t count) {
  constexpr int L = kLanes<float>;
  return round_part<kPart>(load_first(p, count), load_first(p + L, count - L));
}

SSC_INLINE BFloat16 rounded(BFloat16 x) { return x; }
SSC_INLINE BFloat16 rounded(float x) { return to_bfloat16(x); }

template <class S>
SSC_INLINE void put_word(float* word, const S* p, int64_t count) {
  const uint32_t bits = rounded(p[0]).bits | (count > 1 ? uint32_t{rounded(p[1]).bits} << 16 : 0);
  std::memcpy(word, &bits, sizeof bits);
}

// Words (a[d], b[d]) for d in [16 · half, 16 · half + 16).
constexpr Lanes16 interleave(int half) {
  Lanes16 lanes{};
  for (int d = 0; d < 16; ++d) {
    lanes.from[2 * d] = static_cast<uint16_t>(16 * half + d);
    lanes.from[2 * d + 1] = static_cast<uint16_t>(32 + 16 * half + d);
  }
  return lanes;
}

// The words of samples i and i + 1, one for each element.
template <class T>
SSC_INLINE void store_sample_words(float* to, const Words (&v)[kLanes<float>]) {
  static constexpr Lanes16 kLow = interleave(0), kHigh = interleave(1);
#pragma GCC unroll 8
  for (int i = 0; i < kLanes<float>; i += 2, to += kPanel<float>) {
    store<float>(to, words_of(permute(bits_of(v[i]), bits_of(v[i + 1]), kLow)));
    store<float>(to + kLanes<float>, words_of(permute(bits_of(v[i]), bits_of(v[i + 1]), kHigh)));
  }
}

template <class T>
SSC_INLINE void store_exps(float* words, Words e0, Words e1) {
  store<float>(words, round_part<0>(e0, e1));
  if constexpr (kParts == 2) store<float>(words + kPanel<float> / 2, round_part<1>(e0, e1));
}

SSC_INLINE float get_exp(const float* words, int s) {
  float e = 0;
  for (int part = 0; part < kParts; ++part) {
    BFloat16 x;
    std::memcpy(&x, reinterpret_cast<const char*>(words + part * kPanel<float> / 2) + 2 * s, 2);
    e += to_float(x);
  }
  return e;
}

SSC_INLINE void put_exp(float* words, int s, float e) {
  for (int part = 0; part < kParts; ++part) {
    const BFloat16 x = to_bfloat16(e);
    std::memcpy(reinterpret_cast<char*>(words + part * kPanel<float> / 2) + 2 * s, &x, 2);
    e -= to_float(x);
  }
}

// H itself; row_words multiplies E with the coefficient. Rows i and i + 1 share words: the first
// writes all of them, the second, if there is one, its half.
template <class S>
SSC_INLINE void put_grad_words(float* words, const S* h, int64_t count, int64_t left,
                               float /*coefficient*/, int64_t i) {
  static_assert(kTileRows <= kLanes<float>);
  constexpr int kOne = 0x3f80;
  const int64_t of_h = left < count ? left : count;
  const __mmask16 mask = first_lanes(count);
  const auto ones = static_cast<__mmask16>(mask & ~first_lanes(of_h));
  const Words values = load_first(h, of_h);
  const __m256i halves = _mm512_castsi512_si256(round_to_pairs(values, values));
  __m512i bits = _mm512_mask_set1_epi32(_mm512_cvtepu16_epi32(halves), ones, kOne);
  if (i % 2 != 0) {
    bits = _mm512_or_si512(_mm512_slli_epi32(bits, 16), _mm512_maskz_loadu_epi32(mask, words));
  }
  _mm512_mask_storeu_epi32(words, mask, bits);
}

// After rounding, even and odd samples of two rows lie in a vector each, one row in each half:
// words (row 0, row 1) of samples [16 · half, 16 · half + 16).
constexpr Lanes16 interleave_samples(int half) {
  Lanes16 lanes{};
  for (int s = 0; s < 16; ++s) {
    const int from = 32 * (s % 2) + 8 * half + s / 2;
    lanes.from[2 * s] = static_cast<uint16_t>(from);
    lanes.from[2 * s + 1] = static_cast<uint16_t>(16 + from);
  }
  return lanes;
}

// Each pair of E's rows times its coefficients. Of an odd number of rows the last has a row of
// zeros for its neighbour.
SSC_INLINE const float* row_words(const float* e, int64_t begin, int64_t count, int64_t rows,
                                  const float* coefficient, float* part) {
  constexpr int P = kPanel<float>;
  static constexpr Lanes16 kLow = interleave_samples(0), kHigh = interleave_samples(1);
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  for (int64_t k = 0; k < count; ++k) {
    const int64_t i = 2 * (begin + k);
    const bool last = i + 1 == rows;
    const __m512i first = _mm512_loadu_si512(e + i * (P / 2));
    const __m512i second =
        last ? _mm512_setzero_si512() : _mm512_loadu_si512(e + (i + 1) * (P / 2));
    const float c0 = coefficient[i], c1 = last ? 0 : coefficient[i + 1];
    const __m512i even = round_to_pairs(words_of(_mm512_slli_epi32(first, 16)) * c0,
                                        words_of(_mm512_slli_epi32(second, 16)) * c1);
    const __m512i odd = round_to_pairs(words_of(_mm512_and_si512(first, upper)) * c0,
                                       words_of(_mm512_and_si512(second, upper)) * c1);
    store<float>(part + k * P, words_of(permute(even, odd, kLow)));
    store<float>(part + k * P + P / 2, words_of(permute(even, odd, kHigh)));
  }
  return part;
}

}  // namespace ssc::SSC_ISA
