// One sweep over the samples: z = H Ws^T tile by tile, E = exp(z − reference), its row sums, and
// dH += E Ws while the tile of E is still in cache.
//
// The reference point of a row's exponential is its target's corrected logit, so no pass for the
// maximum is needed first: terms far below it vanish against the target's own exp(0) = 1, and a
// term that would grow past exp(kExpCeiling) moves the reference up (raise_reference). P is never
// normalised: 1 / (row sum) is applied to rows of length D in finish_row.
#include <cmath>
#include <limits>

#include "csrc/cpu/loss_stages.h"
#include "csrc/cpu/register_tile.h"

namespace ssc::SSC_ISA {
namespace {

// Up to this width a block of rows runs over a whole tile of samples before the next block, its
// packed rows staying in L1; beyond it a panel of samples is what is worth keeping close.
constexpr int64_t kRowsOuterDim = 1024;

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
__attribute__((noinline, cold)) void raise_reference(const PackedSamples<T>& samples,
                                                     const RowChunk<T>& chunk, int64_t i,
                                                     int64_t panel, T* x) {
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
    T* e = chunk.exps + p * chunk.exps_stride + i * P;
    for (int s = 0; s < P; ++s) e[s] = e[s] * factor < vanishing ? T(0) : e[s] * factor;
  }
  T* grad = chunk.grad_input + i * samples.padded_dim;
  for (int64_t d = 0; d < samples.padded_dim; ++d) grad[d] *= factor;
}

template <class T>
struct Score {
  // z and E of M rows from `row` against one panel.
  template <int M>
  struct Tile {
    static void run(const PackedSamples<T>* samples, const RowChunk<T>* chunk, T inv_temperature,
                    int64_t row, int64_t panel) {
      constexpr int P = kPanel<T>, L = kLanes<T>;
      Vec<T> z[M][2];
      clear_tile<T>(z);
      multiply_add<T, M, 1, M>(z, chunk->packed + row * samples->dim,
                               samples->columns + panel * samples->dim * P, samples->dim);
      const Vec<T> adjust0 = load(samples->adjust + panel * P);
      const Vec<T> adjust1 = load(samples->adjust + panel * P + L);
      Vec<T> top = splat(-std::numeric_limits<T>::infinity());
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
        const T reference = chunk->reference[row + i];
        z[i][0] = z[i][0] * inv_temperature + (adjust0 - reference);
        z[i][1] = z[i][1] * inv_temperature + (adjust1 - reference);
        const int64_t hit = chunk->hit[row + i] - panel * P;
        if (static_cast<uint64_t>(hit) < P) {
          for (int l = 0; l < L; ++l) {
            if (l == hit) z[i][0][l] = -std::numeric_limits<T>::infinity();
            if (l + L == hit) z[i][1][l] = -std::numeric_limits<T>::infinity();
          }
        }
        const Vec<T> most = maximum<T>(z[i][0], z[i][1]);
        T* peak = chunk->peak + (row + i) * L;
        store<T>(peak, maximum<T>(load(peak), most));
        top = maximum<T>(top, most);
      }
      if (any_above_ceiling<T>(top)) [[unlikely]] {
        T x[M * P];
        store_tile<T, M>(z, x, P);
        for (int i = 0; i < M; ++i) {
          raise_reference<T>(*samples, *chunk, row + i, panel, x + i * P);
        }
        load_tile<T, M>(z, x, P);
      }
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
        const Vec<T> e0 = exp_in_range<T>(z[i][0]), e1 = exp_in_range<T>(z[i][1]);
        T* sum = chunk->sum + (row + i) * L;
        store<T>(sum, load(sum) + (e0 + e1));
        if (chunk->exps != nullptr) {
          T* e = chunk->exps + panel * chunk->exps_stride + (row + i) * P;
          store<T>(e, e0);
          store<T>(e + L, e1);
        }
      }
    }
  };
};

template <class T>
struct Gradient {
  // grad_input[row : row + M][column : column + P] += E Ws over panels [first, last) of one tile.
  template <int M>
  struct Tile {
    static void run(const PackedSamples<T>* samples, const RowChunk<T>* chunk, int64_t row,
                    int64_t column, int64_t first, int64_t last) {
      constexpr int P = kPanel<T>;
      T* out = chunk->grad_input + row * samples->padded_dim + column;
      Vec<T> acc[M][2];
      if (first == 0) {
        clear_tile<T>(acc);
      } else {
        load_tile<T, M>(acc, out, samples->padded_dim);
      }
      const int64_t height = samples->tile_panels * P;
      const T* w = samples->rows + (first / samples->tile_panels) * height * samples->padded_dim +
                   column * height;
      for (int64_t p = first; p < last; ++p, w += P * P) {
        multiply_add<T, M, P, 1>(acc, chunk->exps + p * chunk->exps_stride + row * P, w, P);
      }
      store_tile<T, M>(acc, out, samples->padded_dim);
    }
  };
};

}  // namespace

template <class T>
void sweep(const PackedSamples<T>& samples, const RowChunk<T>& chunk, T inv_temperature,
           int64_t begin, int64_t end) {
  const auto score = [&](int64_t b, int64_t panel) {
    const Range r = piece(chunk.rows, chunk.blocks, b);
    with_rows<Score<T>::template Tile>(r.end - r.begin, &samples, &chunk, inv_temperature, r.begin,
                                       panel);
  };
  const auto gradient = [&](int64_t b, int64_t column, int64_t first, int64_t last) {
    const Range r = piece(chunk.rows, chunk.blocks, b);
    with_rows<Gradient<T>::template Tile>(r.end - r.begin, &samples, &chunk, r.begin, column, first,
                                          last);
  };
  const int64_t columns = chunk.exps == nullptr ? 0 : samples.padded_dim;
  for (int64_t first = 0; first < samples.panels; first += samples.tile_panels) {
    const int64_t last =
        first + samples.tile_panels < samples.panels ? first + samples.tile_panels : samples.panels;
    if (samples.dim <= kRowsOuterDim) {
      for (int64_t b = begin; b < end; ++b) {
        for (int64_t p = first; p < last; ++p) score(b, p);
        for (int64_t c = 0; c < columns; c += kPanel<T>) gradient(b, c, first, last);
      }
    } else {
      for (int64_t p = first; p < last; ++p) {
        for (int64_t b = begin; b < end; ++b) score(b, p);
      }
      for (int64_t c = 0; c < columns; c += kPanel<T>) {
        for (int64_t b = begin; b < end; ++b) gradient(b, c, first, last);
      }
    }
  }
}

template <class T>
void reduce_row(const RowChunk<T>& chunk, int64_t i, T* sum, T* peak) {
  *sum = sum_lanes<T>(load(chunk.sum + i * kLanes<T>));
  *peak = max_lanes<T>(load(chunk.peak + i * kLanes<T>));
}

template void sweep(const PackedSamples<float>&, const RowChunk<float>&, float, int64_t, int64_t);
template void sweep(const PackedSamples<double>&, const RowChunk<double>&, double, int64_t,
                    int64_t);
template void reduce_row(const RowChunk<float>&, int64_t, float*, float*);
template void reduce_row(const RowChunk<double>&, int64_t, double*, double*);

}  // namespace ssc::SSC_ISA
