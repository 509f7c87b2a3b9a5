// The way from z to E and its row sums in the negatives' loss (NegativesForm of loss/table.h):
// logits may be capped, a row may have any number of hits, and the sum is that of
// exp(x − log n − reference), or of softplus(x − log n). E is the factor of the gradients: the
// derivative of the sum's term by the logit x.
#include "csrc/cpu/kernels/activations.h"
#include "csrc/cpu/kernels/score_block.h"

namespace ssc::SSC_ISA {
namespace {

// Takes the row's hits in this panel out of `single` and, if they are removed, out of z. Those that
// are kept count for `top`: a margin may leave the target far below its own class as a sample.
template <class T>
SSC_INLINE void take_out_hits(const TilePlace<T>& at, int64_t row, Vec<T> (&z)[2],
                              Vec<T> (&single)[2], Vec<T>& top) {
  constexpr T kNever = -std::numeric_limits<T>::infinity();
  constexpr int P = kPanel<T>, L = kLanes<T>;
  const RowChunk<T>& chunk = *at.chunk;
  int64_t hit = chunk.hits.sample[row] - at.panel * P;
  while (static_cast<uint64_t>(hit) < P) [[unlikely]] {
    for (int half = 0; half < 2; ++half) {
      for (int l = 0; l < L; ++l) {
        if (l + half * L != hit) continue;
        single[half][l] = kNever;
        if (chunk.hits.removed) {
          z[half][l] = kNever;
        } else {
          top = maximum<T>(top, z[half]);
        }
      }
    }
    int64_t& next = chunk.hits.next[row];
    chunk.hits.sample[row] = next < chunk.hits.end[row] ? chunk.hits.list[next++] : -1;
    hit = chunk.hits.sample[row] - at.panel * P;
  }
}

template <class T, bool kSigmoid>
struct Negatives {
  template <int M>
  SSC_INLINE void run(Vec<T> (&z)[M][2], const TilePlace<T>& at, T* exps) {
    constexpr int P = kPanel<T>, L = kLanes<T>;
    constexpr T kInfinity = std::numeric_limits<T>::infinity();
    const RowChunk<T>* chunk = at.chunk;
    const Tile<T>& tile = *at.tile;
    const T inv_temperature = static_cast<T>(at.samples->inv_temperature);
    const T softcap = static_cast<T>(at.samples->negatives->softcap);
    const int64_t first = at.local * P;
    Vec<T> slope[M][2];
    Vec<T> top = splat(-kInfinity);
    for (int i = 0; i < M; ++i) {
      const T reference = kSigmoid ? T(0) : chunk->sums.reference[at.row + i];
      Vec<T> single[2];
      for (int half = 0; half < 2; ++half) {
        Vec<T> x = z[i][half] * inv_temperature + load(tile.bias + first + half * L);
        slope[i][half] = splat(T(1));
        if (softcap > 0) {
          const Vec<T> t = tanh_of<T>(x / softcap);
          x = t * softcap;
          slope[i][half] = T(1) - t * t;
        }
        // Samples that are left out and the padding stay out, whatever their products are.
        const Vec<T> log_count = load(tile.log_count + first + half * L);
        z[i][half] = log_count == kInfinity ? splat(-kInfinity) : x - log_count - reference;
        single[half] = z[i][half];
        if (!kSigmoid) single[half] -= load(tile.log_copies + first + half * L);
      }
      take_out_hits<T>(at, at.row + i, z[i], single, top);
      const Vec<T> most = maximum<T>(single[0], single[1]);
      T* peak = chunk->sums.peak + (at.row + i) * L;
      store<T>(peak, maximum<T>(load(peak), most));
      top = maximum<T>(top, most);
    }
    if (!kSigmoid) check_ceiling<T, M>(z, top, at);
    for (int i = 0; i < M; ++i) {
      Vec<T> e[2], term[2];
      for (int half = 0; half < 2; ++half) {
        if constexpr (kSigmoid) {
          const Vec<T> count = load(tile.copies + first + half * L);
          const Softplus<T> softplus = softplus_of<T>(z[i][half]);
          term[half] = softplus.value * count;
          e[half] = softplus.slope * count;
        } else {
          term[half] = e[half] = exp_in_range<T>(z[i][half]);
        }
        e[half] *= slope[i][half];
      }
      T* sum = chunk->sums.sum + (at.row + i) * L;
      store<T>(sum, load(sum) + (term[0] + term[1]));
      if (exps != nullptr) store_exps<T>(exps + i * kExpWords<T>, e[0], e[1]);
    }
  }
};

}  // namespace

template <class T>
void score_negatives(const Samples& samples, const Tile<T>& tile, const RowChunk<T>& chunk,
                     int64_t block, Panels panels, UpcomingRows<T>& upcoming) {
  if (samples.negatives->sigmoid) {
    score_block<T, Negatives<T, true>>(samples, tile, chunk, block, panels, upcoming);
  } else {
    score_block<T, Negatives<T, false>>(samples, tile, chunk, block, panels, upcoming);
  }
}

template void score_negatives(const Samples&, const Tile<float>&, const RowChunk<float>&, int64_t,
                              Panels, UpcomingRows<float>&);
#if !defined(SSC_BF16_PAIRS)
template void score_negatives(const Samples&, const Tile<double>&, const RowChunk<double>&, int64_t,
                              Panels, UpcomingRows<double>&);
#endif

}  // namespace ssc::SSC_ISA
