// The plain softmax's way from z to E = exp(z − reference) and its row sums (see score_tile.h).
#include "csrc/cpu/kernels/score_block.h"

namespace ssc::SSC_ISA {
namespace {

template <class T>
struct Softmax {
  template <int M>
  SSC_INLINE void run(Vec<T> (&z)[M][2], const TilePlace<T>& at, T* exps) {
    constexpr int P = kPanel<T>, L = kLanes<T>;
    const RowChunk<T>* chunk = at.chunk;
    const T inv_temperature = static_cast<T>(at.samples->inv_temperature);
    const Vec<T> shift0 = load(at.tile->shift + at.local * P);
    const Vec<T> shift1 = load(at.tile->shift + at.local * P + L);
    const Vec<T> copies0 = load(at.tile->log_copies + at.local * P);
    const Vec<T> copies1 = load(at.tile->log_copies + at.local * P + L);
    Vec<T> top = splat(-std::numeric_limits<T>::infinity());
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      const T reference = chunk->sums.reference[at.row + i];
      z[i][0] = z[i][0] * inv_temperature + (shift0 - reference);
      z[i][1] = z[i][1] * inv_temperature + (shift1 - reference);
      Vec<T> single0 = z[i][0] - copies0, single1 = z[i][1] - copies1;
      const int64_t hit = chunk->hits.sample[at.row + i] - at.panel * P;
      if (static_cast<uint64_t>(hit) < P) {
        constexpr T kNever = -std::numeric_limits<T>::infinity();
        for (int l = 0; l < L; ++l) {
          if (l == hit) single0[l] = kNever;
          if (l + L == hit) single1[l] = kNever;
          if (l == hit && chunk->hits.removed) z[i][0][l] = kNever;
          if (l + L == hit && chunk->hits.removed) z[i][1][l] = kNever;
        }
        // A kept hit may be far above its target, whose log count differs.
        if (!chunk->hits.removed) top = maximum<T>(top, maximum<T>(z[i][0], z[i][1]));
      }
      const Vec<T> most = maximum<T>(single0, single1);
      T* peak = chunk->sums.peak + (at.row + i) * L;
      store<T>(peak, maximum<T>(load(peak), most));
      top = maximum<T>(top, most);
    }
    check_ceiling<T, M>(z, top, at);
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      const Vec<T> e0 = exp_in_range<T>(z[i][0]), e1 = exp_in_range<T>(z[i][1]);
      T* sum = chunk->sums.sum + (at.row + i) * L;
      store<T>(sum, load(sum) + (e0 + e1));
      if (exps != nullptr) store_exps<T>(exps + i * kExpWords<T>, e0, e1);
    }
  }
};

}  // namespace

template <class T>
void score(const Samples& samples, const Tile<T>& tile, const RowChunk<T>& chunk, int64_t block,
           Panels panels, UpcomingRows<T>& upcoming) {
  score_block<T, Softmax<T>>(samples, tile, chunk, block, panels, upcoming);
}

template void score(const Samples&, const Tile<float>&, const RowChunk<float>&, int64_t, Panels,
                    UpcomingRows<float>&);
#if !defined(SSC_BF16_PAIRS)
template void score(const Samples&, const Tile<double>&, const RowChunk<double>&, int64_t, Panels,
                    UpcomingRows<double>&);
#endif

}  // namespace ssc::SSC_ISA
