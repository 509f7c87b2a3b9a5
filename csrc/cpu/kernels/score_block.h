// z = H Ws^T of a block of rows against panels of samples: in register tiles of vectors, or, where
// SSC_AMX is defined, in tiles of the matrix unit.
#pragma once

#if defined(SSC_AMX)
#include "csrc/cpu/kernels/amx_score_block.h"
#else

#include "csrc/cpu/kernels/score_tile.h"

namespace ssc::SSC_ISA {

template <class T, class Epilogue>
struct Score {
  // z of M rows, then the epilogue, which stores E where it is kept (exps not null). Meanwhile the
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
      T* exps = chunk->grads.exps == nullptr
                    ? chunk->sums.sum + row * L
                    : chunk->grads.exps + panel * chunk->grads.exps_stride + row * kExpWords<T>;
      Wanted wanted = {{upcoming->row[0], upcoming->row[1]},
                       upcoming->stride,
                       reinterpret_cast<const char*>(exps),
                       chunk->grads.exps == nullptr ? 0 : 64};
      Vec<T> z[M][2];
      clear_tile<T>(z);
      multiply_add<T, M>(z, h, w, half, wanted);
      wanted.read[0] = upcoming->row[2];
      wanted.read[1] = upcoming->row[3];
      multiply_add<T, M>(z, h + half * M, w + half * P, steps - half, wanted);
      Epilogue::template run<M>(z, TilePlace<T>{tile, chunk, samples, row, local, panel},
                                chunk->grads.exps == nullptr ? nullptr : exps);
    }
  };
};

// Row block `block` of the chunk.
template <class T, class Epilogue>
SSC_INLINE void score_block(const Samples& samples, const Tile<T>& tile, const RowChunk<T>& chunk,
                            int64_t block, Panels panels, UpcomingRows<T>& upcoming) {
  const Range r = piece(chunk.blocks, block);
  for (int64_t p = panels.begin; p < panels.end; ++p) {
    const Upcoming next = upcoming.take();
    with_rows<Score<T, Epilogue>::template Body>(r.end - r.begin, &tile, &chunk, &samples, r.begin,
                                                 p - panels.tile, p, &next);
  }
}

}  // namespace ssc::SSC_ISA

#endif
