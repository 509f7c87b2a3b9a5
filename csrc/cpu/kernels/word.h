// Words, the unit in which matmuls stream their operands: of T's size, elements of T, or,
// where SSC_BF16_PAIRS is defined (the namespace avx512_bf16), pairs of bf16 that are neighbours
// along the contraction. There a step of a matmul multiplies both and adds the two products to
// float accumulators, so the same loops take half the steps.
#pragma once

#if defined(SSC_BF16_PAIRS)
#include "csrc/cpu/kernels/bf16_pair.h"
#else

#include "csrc/cpu/kernels/simd.h"

namespace ssc::SSC_ISA {

// Elements in a word.
template <class T>
constexpr int kWord = 1;

// Parts of an element: words of the next parts follow those of the first, in whole units.
constexpr int kParts = 1;

// A word in all lanes.
template <class T>
SSC_INLINE Vec<T> broadcast(const T* word) {
  return splat(*word);
}

// sum += a · b, lane by lane.
template <class T>
SSC_INLINE void multiply_add_words(Vec<T>& sum, Vec<T> a, Vec<T> b) {
  sum += a * b;
}

// kLanes words of neighbouring elements of a row of H or W.
template <class T, int /*kPart*/, class S>
SSC_INLINE Vec<T> load_words(const S* p) {
  return load_as<T>(p);
}

// The same where only `count` elements, fewer than kLanes words, are left; the others are 0.
template <class T, int /*kPart*/, class S>
SSC_INLINE Vec<T> load_words_head(const S* p, int64_t count) {
  return load_head<T>(p, count);
}

// One word, the row having `count` > 0 elements from p on.
template <class T, class S>
SSC_INLINE void put_word(T* word, const S* p, int64_t /*count*/) {
  *word = get<T>(p);
}

// v: kLanes samples' words of neighbouring elements. Stores the words of samples that are
// neighbours along the contraction over samples, one line of kPanel per word.
template <class T>
SSC_INLINE void store_sample_words(T* to, const Vec<T> (&v)[kLanes<T>]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) store<T>(to + i * kPanel<T>, v[i]);
}

// A row's E of one panel.
template <class T>
SSC_INLINE void store_exps(T* words, Vec<T> e0, Vec<T> e1) {
  store<T>(words, e0);
  store<T>(words + kLanes<T>, e1);
}
template <class T>
SSC_INLINE T get_exp(const T* words, int s) {
  return words[s];
}
template <class T>
SSC_INLINE void put_exp(T* words, int s, T e) {
  words[s] = e;
}

template <class T>
SSC_INLINE void store_head(T* p, Vec<T> v, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), (__m512)v);
    return;
  }
#endif
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}

// Row i's share of `count` columns of the operand of dWs: its coefficient times H, of which `left`
// elements are left from h on, and then the column of ones.
template <class T, class S>
SSC_INLINE void put_grad_words(T* words, const S* h, int64_t count, int64_t left, T coefficient,
                               int64_t /*i*/) {
  if (left >= kLanes<T> && count <= kLanes<T>) {
    store_head<T>(words, load_as<T>(h) * coefficient, count);
  } else {
    for (int64_t j = 0; j < count; ++j) words[j] = (j < left ? get<T>(h + j) : T(1)) * coefficient;
  }
}

// Words [begin, begin + count) of E's panel, which starts at e, along the contraction over rows.
// `part` has room for them where they have to be put together.
template <class T>
SSC_INLINE const T* row_words(const T* e, int64_t begin, int64_t /*count*/, int64_t /*rows*/,
                              const T* /*coefficient*/, T* /*part*/) {
  return e + begin * kPanel<T>;
}

}  // namespace ssc::SSC_ISA

#endif
