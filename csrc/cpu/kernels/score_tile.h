// Parts of every way from z = H Ws^T to E and its sums: an epilogue, which score_block.h or
// amx_score_block.h hands z of M rows in registers, Epilogue::run<M>(z, place, exps).
//
// The reference point of a row's exponential is its target's corrected logit, so no pass for the
// maximum is needed first: terms far below it vanish against the target's own exp(0) = 1, and a
// term that would grow past exp(kExpCeiling) moves the reference up (raise_reference). P is never
// normalised: 1 / (row sum) is applied to rows of length D in finish_row.
#pragma once

#include <cmath>
#include <limits>

#include "csrc/cpu/kernels/register_tile.h"
#include "csrc/cpu/kernels/stages.h"

namespace ssc::SSC_ISA {
template <class T>
SSC_INLINE bool any_above_ceiling(Vec<T> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return _mm512_cmp_ps_mask((__m512)v, _mm512_set1_ps(kExpCeiling<float>), _CMP_GT_OQ) != 0;
  } else {
    return _mm512_cmp_pd_mask((__m512d)v, _mm512_set1_pd(kExpCeiling<double>), _CMP_GT_OQ) != 0;
  }
#elif defined(__AVX2__)
  const auto above = v > kExpCeiling<T>;
  return _mm256_movemask_epi8((__m256i)above) != 0;
#else
  return max_lanes<T>(v) > kExpCeiling<T>;
#endif
}

// Rare: row i met a z above its reference by more than the ceiling. Makes the largest of them the
// new reference and scales what the row has gathered so far: its sums, its E of earlier panels, its
// gradient of earlier tiles. x: the row's P values in the present panel, relative to the reference.
template <class T>
__attribute__((noinline, cold)) static void raise_reference(int64_t padded_dim,
                                                            const RowChunk<T>& chunk, int64_t i,
                                                            int64_t panel, T* x) {
  constexpr int P = kPanel<T>, L = kLanes<T>;
  T shift = x[0];
  for (int s = 1; s < P; ++s) shift = x[s] > shift ? x[s] : shift;
  if (!(shift > kExpCeiling<T>)) return;
  const T factor = std::exp(-shift);
  const T vanishing = std::exp(kExpFloor<T>);
  chunk.sums.reference[i] += shift;
  chunk.sums.settled[i] *= factor;
  for (int l = 0; l < L; ++l) {
    chunk.sums.sum[i * L + l] *= factor;
    chunk.sums.peak[i * L + l] -= shift;
  }
  for (int s = 0; s < P; ++s) x[s] -= shift;
  if (chunk.grads.exps == nullptr) return;
  for (int64_t p = 0; p < panel; ++p) {
    T* e = chunk.grads.exps + p * chunk.grads.exps_stride + i * kExpWords<T>;
    for (int s = 0; s < P; ++s) {
      const T scaled = get_exp(e, s) * factor;
      put_exp(e, s, scaled < vanishing ? T(0) : scaled);
    }
  }
  T* grad = chunk.grads.input + i * padded_dim;
  for (int64_t d = 0; d < padded_dim; ++d) grad[d] *= factor;
}

// A register tile's place: M rows from `row`, panel `local` of the tile and `panel` of all.
template <class T>
struct TilePlace {
  const Tile<T>* tile;
  const RowChunk<T>* chunk;
  const Samples* samples;
  int64_t row, local, panel;
};

// If any lane of z − reference is above the ceiling, raises the rows' references.
template <class T, int M>
SSC_INLINE void check_ceiling(Vec<T> (&z)[M][2], Vec<T> top, const TilePlace<T>& at) {
  constexpr int P = kPanel<T>;
  if (any_above_ceiling<T>(top)) [[unlikely]] {
    T x[M * P];
    store_tile<T, M>(z, x, P);
    for (int i = 0; i < M; ++i) {
      raise_reference<T>(at.tile->padded_dim, *at.chunk, at.row + i, at.panel, x + i * P);
    }
    load_tile<T, M>(z, x, P);
  }
}

}  // namespace ssc::SSC_ISA
