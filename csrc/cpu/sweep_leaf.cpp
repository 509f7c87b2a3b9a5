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
#include "csrc/cpu/prefetch.h"
#include "csrc/cpu/register_tile.h"

namespace ssc::SSC_ISA {
namespace {

// Up to this width a block of rows runs over a whole tile of samples before the next block, its
// packed rows staying in L1; beyond it a panel of samples is what is worth keeping close.
constexpr int64_t kRowsOuterDim = 1024;
// Samples after which a row's partial sums are settled.
constexpr int64_t kSettleSamples = 16384;

// Rows of W that the next tile will gather, from all over memory: handed out two at a time, they
// are on their way into L2 while the present tile is in work.
struct Upcoming {
  const char* row[2];
  int64_t stride;  // bytes from one prefetch to the next: half a matmul's steps cover a row
};

class UpcomingRows {
 public:
  UpcomingRows(const Samples& samples, int64_t begin, int64_t end)
      : samples_(samples), next_(begin), end_(end) {}

  Upcoming take() {
    const int64_t stride = 2 * kPrefetchInterval * element_size(samples_.weight.dtype);
    if (next_ + 2 > end_) {
      const char* any = static_cast<const char*>(samples_.weight.data);
      return {{any, any}, 0};
    }
    next_ += 2;
    return {{row(next_ - 2), row(next_ - 1)}, stride};
  }

 private:
  const char* row(int64_t s) const {
    return samples_.weight.row(samples_.ids == nullptr ? samples_.first + s : samples_.ids[s]);
  }

  const Samples& samples_;
  int64_t next_, end_;
};

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
    T* e = chunk.exps + p * chunk.exps_stride + i * P;
    for (int s = 0; s < P; ++s) e[s] = e[s] * factor < vanishing ? T(0) : e[s] * factor;
  }
  T* grad = chunk.grad_input + i * padded_dim;
  for (int64_t d = 0; d < padded_dim; ++d) grad[d] *= factor;
}

template <class T>
struct Score {
  // z and E of M rows from `row` against panel `local` of the tile, `panel` of all. Meanwhile the
  // lines of `upcoming`, two rows of W that the next tile will gather, are asked for.
  template <int M>
  struct Body {
    static void run(const Tile<T>* tile, const RowChunk<T>* chunk, const Samples* samples,
                    int64_t row, int64_t local, int64_t panel, const Upcoming* upcoming) {
      constexpr int P = kPanel<T>, L = kLanes<T>;
      const int64_t dim = samples->dim;
      const int64_t half = dim / (2 * kPrefetchInterval) * kPrefetchInterval;
      const T* h = chunk->packed + row * dim;
      const T* w = tile->columns + local * dim * P;
      T* exps = chunk->exps == nullptr ? chunk->sum + row * L
                                       : chunk->exps + panel * chunk->exps_stride + row * P;
      Wanted wanted = {upcoming->row[0], upcoming->stride, reinterpret_cast<const char*>(exps),
                       chunk->exps == nullptr ? 0 : 64};
      Vec<T> z[M][2];
      clear_tile<T>(z);
      multiply_add<T, M>(z, h, w, half, wanted);
      wanted.read = upcoming->row[1];
      multiply_add<T, M>(z, h + half * M, w + half * P, dim - half, wanted);

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
        if (chunk->exps != nullptr) {
          store<T>(exps + i * P, e0);
          store<T>(exps + i * P + L, e1);
        }
      }
    }
  };
};

template <class T>
struct Gradient {
  // grad_input[row : row + M][column : column + P] += E Ws over panels [first, last), the tile; w
  // are its packed rows from that column on.
  template <int M>
  struct Body {
    static void run(const RowChunk<T>* chunk, int64_t row, int64_t padded_dim, int64_t column,
                    const T* w, int64_t first, int64_t last) {
      constexpr int P = kPanel<T>;
      T* out = chunk->grad_input + row * padded_dim + column;
      Vec<T> acc[M][2];
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {  // the next column's accumulators, from L2
        __builtin_prefetch(out + i * padded_dim + P, 1, 3);
        __builtin_prefetch(out + i * padded_dim + P + kLanes<T>, 1, 3);
      }
      if (first == 0) {
        clear_tile<T>(acc);
      } else {
        load_tile<T, M>(acc, out, padded_dim);
      }
      for (int64_t p = first; p < last; ++p, w += P * P) {
        const T* e = chunk->exps + p * chunk->exps_stride + row * P;
        multiply_add_panel<T, M>(acc, e, w);
      }
      store_tile<T, M>(acc, out, padded_dim);
    }
  };
};

// Moves the lanes' sums into the double, before their number of terms costs float its precision.
template <class T>
void settle(const RowChunk<T>& chunk, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    T* sum = chunk.sum + i * kLanes<T>;
    chunk.settled[i] += static_cast<double>(sum_lanes<T>(load(sum)));
    store<T>(sum, Vec<T>{});
  }
}

}  // namespace

template <class T>
void sweep(const Samples& samples, const Tile<T>& tile, const RowChunk<T>& chunk, int64_t begin,
           int64_t end) {
  constexpr int P = kPanel<T>;
  const int64_t panels = count_panels<T>(samples.count);
  const int64_t columns = chunk.exps == nullptr ? 0 : tile.padded_dim;
  int64_t settled = 0;
  for (int64_t first = 0; first < panels; first += tile.panels) {
    const int64_t last = smaller(first + tile.panels, panels);
    gather_tile<T>(samples, first, last, tile);
    UpcomingRows upcoming(samples, last * P, smaller((last + tile.panels) * P, samples.count));
    const auto score = [&](int64_t b, int64_t panel) {
      const Range r = piece(chunk.blocks, b);
      const Upcoming two = upcoming.take();
      with_rows<Score<T>::template Body>(r.end - r.begin, &tile, &chunk, &samples, r.begin,
                                         panel - first, panel, &two);
    };
    const auto gradient = [&](int64_t b, int64_t column) {
      const Range r = piece(chunk.blocks, b);
      const T* w = tile.rows + column * tile.panels * P;
      with_rows<Gradient<T>::template Body>(r.end - r.begin, &chunk, r.begin, tile.padded_dim,
                                            column, w, first, last);
    };
    if (samples.dim <= kRowsOuterDim) {
      for (int64_t b = begin; b < end; ++b) {
        for (int64_t p = first; p < last; ++p) score(b, p);
        for (int64_t c = 0; c < columns; c += P) gradient(b, c);
      }
    } else {
      for (int64_t p = first; p < last; ++p) {
        for (int64_t b = begin; b < end; ++b) score(b, p);
      }
      for (int64_t c = 0; c < columns; c += P) {
        for (int64_t b = begin; b < end; ++b) gradient(b, c);
      }
    }
    if ((last - settled) * P >= kSettleSamples) {
      settle(chunk, piece(chunk.blocks, begin).begin, piece(chunk.blocks, end - 1).end);
      settled = last;
    }
  }
}

template <class T>
void reduce_row(const RowChunk<T>& chunk, int64_t i, double* sum, T* peak) {
  *sum = chunk.settled[i] + static_cast<double>(sum_lanes<T>(load(chunk.sum + i * kLanes<T>)));
  *peak = max_lanes<T>(load(chunk.peak + i * kLanes<T>));
}

template void sweep(const Samples&, const Tile<float>&, const RowChunk<float>&, int64_t, int64_t);
template void sweep(const Samples&, const Tile<double>&, const RowChunk<double>&, int64_t, int64_t);
template void reduce_row(const RowChunk<float>&, int64_t, double*, float*);
template void reduce_row(const RowChunk<double>&, int64_t, double*, double*);

}  // namespace ssc::SSC_ISA
