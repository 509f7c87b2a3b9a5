// One sweep over the samples: tile by tile their rows are gathered and packed, then come z, E and
// the row sums (score.cpp, score_negatives.cpp), and dH += E Ws (input_grad.cpp) while the tile of
// E is still in cache. Here is the order of the loops.
#include "csrc/cpu/kernels/stages.h"

namespace ssc::SSC_ISA {
namespace {

// Up to this width a block of rows runs over a whole tile of samples before the next block, its
// packed rows staying in L1; beyond it a panel of samples is what is worth keeping close.
constexpr int64_t kRowsOuterDim = 1024;
// Samples after which a row's partial sums are settled.
constexpr int64_t kSettleSamples = 16384;

// Moves the lanes' sums into the double, before their number of terms costs float its precision.
template <class T>
void settle(const RowChunk<T>& chunk, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    T* sum = chunk.sums.sum + i * kLanes<T>;
    chunk.sums.settled[i] += static_cast<double>(sum_lanes<T>(load(sum)));
    store<T>(sum, Vec<T>{});
  }
}

}  // namespace

template <class T>
void sweep(const Samples& samples, const Tile<T>& tile, const RowChunk<T>& chunk, int64_t begin,
           int64_t end) {
  constexpr int P = kPanel<T>;
  const int64_t panels = count_panels<T>(samples.count);
  const int64_t columns = chunk.grads.exps == nullptr ? 0 : tile.padded_dim;
  int64_t settled = 0;
  const TileRegisters registers;
  for (int64_t first = 0; first < panels; first += tile.panels) {
    const int64_t last = smaller(first + tile.panels, panels);
    gather_tile<T>(samples, first, last, tile);
    UpcomingRows<T> upcoming(samples, last * P, smaller((last + tile.panels) * P, samples.count),
                             (end - begin) * (last - first));
    const auto score_panels = [&](int64_t b, int64_t p, int64_t end) {
      const Panels panels = {p, end, first};
      if (samples.negatives == nullptr) {
        score(samples, tile, chunk, b, panels, upcoming);
      } else {
        score_negatives(samples, tile, chunk, b, panels, upcoming);
      }
    };
    if (samples.dim <= kRowsOuterDim) {
      for (int64_t b = begin; b < end; ++b) {
        score_panels(b, first, last);
        for (int64_t c = 0; c < columns; c += P) input_grad(tile, chunk, b, c, first, last);
      }
    } else {
      for (int64_t p = first; p < last; ++p) {
        for (int64_t b = begin; b < end; ++b) score_panels(b, p, p + 1);
      }
      for (int64_t c = 0; c < columns; c += P) {
        for (int64_t b = begin; b < end; ++b) input_grad(tile, chunk, b, c, first, last);
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
  *sum = chunk.sums.settled[i] +
         static_cast<double>(sum_lanes<T>(load(chunk.sums.sum + i * kLanes<T>)));
  *peak = max_lanes<T>(load(chunk.sums.peak + i * kLanes<T>));
}

template void sweep(const Samples&, const Tile<float>&, const RowChunk<float>&, int64_t, int64_t);
template void reduce_row(const RowChunk<float>&, int64_t, double*, float*);
#if !defined(SSC_BF16_PAIRS)
template void sweep(const Samples&, const Tile<double>&, const RowChunk<double>&, int64_t, int64_t);
template void reduce_row(const RowChunk<double>&, int64_t, double*, double*);
#endif

}  // namespace ssc::SSC_ISA
