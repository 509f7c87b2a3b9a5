// z = H Ws^T of one register tile, E = exp(z − reference) and its row sums, while z is in
// registers.
//
// The reference point of a row's exponential is its target's corrected logit, so no pass for the
// maximum is needed first: terms far below it vanish against the target's own exp(0) = 1, and a
// term that would grow past exp(kExpCeiling) moves the reference up (raise_reference). P is never
// normalised: 1 / (row sum) is applied to rows of length D in finish_row.
#include <cmath>
#include <limits>

#include "csrc/cpu/loss_stages.h"
#include "csrc/cpu/prefetch.h"
#include "csrc/cpu/register_tile.h"

namespace ssc::SSC_ISA {
namespace {

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
__attribute__((noinline, cold)) void raise_reference(int64_t padded_dim, const RowChunk<T>& chunk,
                                                     int64_t i, int64_t panel, T* x) {
  constexpr int P = kPanel<T>, L = kLanes<T>;
  T shift = x[0];
  for (int s = 1; s < P; ++s) shift = x[s] > shift ? x[s] : shift;
  if (!(shift > kExpCeiling<T>)) return;
  const T factor = std::exp(-shift);
  const T vanishing = std::exp(kExpFloor<T>);
  chunk.reference[i] += shift;
  chunk.settled[i] *= factor;
  for (int l = 0; l < L; ++l) {
    chunk.sum[i * L + l] *= factor;
    chunk.peak[i * L + l] -= shift;
  }
  for (int s = 0; s < P; ++s) x[s] -= shift;
  if (chunk.exps == nullptr) return;
  for (int64_t p = 0; p < panel; ++p) {
    T* e = chunk.exps + p * chunk.exps_stride + i * P / kWord<T>;
    for (int s = 0; s < P; ++s) {
      const T scaled = get_exp(e, s) * factor;
      put_exp(e, s, scaled < vanishing ? T(0) : scaled);
    }
  }
  T* grad = chunk.grad_input + i * padded_dim;
  for (int64_t d = 0; d < padded_dim; ++d) grad[d] *= factor;
}

template <class T>
struct Score {
  // z and E of M rows from `row` against panel `local` of the tile, `panel` of all. Meanwhile the
  // lines of `upcoming`, rows of W that the next tile will gather, are asked for.
  template <int M>
  struct Body {
    static void run(const Tile<T>* tile, const RowChunk<T>* chunk, const Samples* samples,
                    int64_t row, int64_t local, int64_t panel, const Upcoming* upcoming) {
      constexpr int P = kPanel<T>, L = kLanes<T>;
      const int64_t steps = count_words<T>(samples->dim);
      const int64_t half = steps / (2 * kPrefetchInterval) * kPrefetchInterval;
      const T* h = chunk->packed + row * steps;
      const T* w = tile->columns + local * steps * P;
      constexpr int kExpWords = P / kWord<T>;  // of a row
      T* exps = chunk->exps == nullptr ? chunk->sum + row * L
                                       : chunk->exps + panel * chunk->exps_stride + row * kExpWords;
      Wanted wanted = {{upcoming->row[0], upcoming->row[1]},
                       upcoming->stride,
                       reinterpret_cast<const char*>(exps),
                       chunk->exps == nullptr ? 0 : 64};
      Vec<T> z[M][2];
      clear_tile<T>(z);
      multiply_add<T, M>(z, h, w, half, wanted);
      wanted.read[0] = upcoming->row[2];
      wanted.read[1] = upcoming->row[3];
      multiply_add<T, M>(z, h + half * M, w + half * P, steps - half, wanted);

      const T inv_temperature = static_cast<T>(samples->inv_temperature);
      const Vec<T> adjust0 = load(tile->adjust + local * P);
      const Vec<T> adjust1 = load(tile->adjust + local * P + L);
      const Vec<T> copies0 = load(tile->copies + local * P);
      const Vec<T> copies1 = load(tile->copies + local * P + L);
      Vec<T> top = splat(-std::numeric_limits<T>::infinity());
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
        const T reference = chunk->reference[row + i];
        z[i][0] = z[i][0] * inv_temperature + (adjust0 - reference);
        z[i][1] = z[i][1] * inv_temperature + (adjust1 - reference);
        Vec<T> single0 = z[i][0] - copies0, single1 = z[i][1] - copies1;
        const int64_t hit = chunk->hit[row + i] - panel * P;
        if (static_cast<uint64_t>(hit) < P) {
          constexpr T kNever = -std::numeric_limits<T>::infinity();
          for (int l = 0; l < L; ++l) {
            if (l == hit) single0[l] = kNever;
            if (l + L == hit) single1[l] = kNever;
            if (l == hit && chunk->remove_hits) z[i][0][l] = kNever;
            if (l + L == hit && chunk->remove_hits) z[i][1][l] = kNever;
          }
        }
        const Vec<T> most = maximum<T>(single0, single1);
        T* peak = chunk->peak + (row + i) * L;
        store<T>(peak, maximum<T>(load(peak), most));
        top = maximum<T>(top, most);
      }
      if (any_above_ceiling<T>(top)) [[unlikely]] {
        T x[M * P];
        store_tile<T, M>(z, x, P);
        for (int i = 0; i < M; ++i) {
          raise_reference<T>(tile->padded_dim, *chunk, row + i, panel, x + i * P);
        }
        load_tile<T, M>(z, x, P);
      }
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
        const Vec<T> e0 = exp_in_range<T>(z[i][0]), e1 = exp_in_range<T>(z[i][1]);
        T* sum = chunk->sum + (row + i) * L;
        store<T>(sum, load(sum) + (e0 + e1));
        if (chunk->exps != nullptr) store_exps<T>(exps + i * kExpWords, e0, e1);
      }
    }
  };
};

}  // namespace

template <class T>
void score(const Samples& samples, const Tile<T>& tile, const RowChunk<T>& chunk, int64_t block,
           int64_t local, int64_t panel, const Upcoming& upcoming) {
  const Range r = piece(chunk.blocks, block);
  with_rows<Score<T>::template Body>(r.end - r.begin, &tile, &chunk, &samples, r.begin, local,
                                     panel, &upcoming);
}

template void score(const Samples&, const Tile<float>&, const RowChunk<float>&, int64_t, int64_t,
                    int64_t, const Upcoming&);
#if !defined(SSC_BF16_PAIRS)
template void score(const Samples&, const Tile<double>&, const RowChunk<double>&, int64_t, int64_t,
                    int64_t, const Upcoming&);
#endif

}  // namespace ssc::SSC_ISA
