// z = H Ws^T in tiles of the matrix unit. A product leaves its z in memory that stays in L1; while the
// unit works on the next panel, the vectors take some rows of that z through the epilogue after each
// step of the product. The two have nothing to wait for in each other, so the core runs them at once.
#pragma once

#include "csrc/cpu/kernels/amx_tile.h"
#include "csrc/cpu/kernels/score_tile.h"

namespace ssc::SSC_ISA {

constexpr int kRowsAtOnce = 4;      // in registers, for an epilogue
constexpr int64_t kRowsAhead = 32;  // of W that a panel's product asks for, at most
constexpr int64_t kLineBytes = 64;

// z [32][P] of a block against a panel whose epilogue is due.
template <class T, class Epilogue>
class DuePanel {
 public:
  // No panel: nothing is due.
  DuePanel() = default;
  DuePanel(const T* z, const TilePlace<T>& place, int64_t rows) : z_(z), at_(place), rows_(rows) {
    const ChunkGradients<T>& grads = place.chunk->grads;
    if (grads.exps == nullptr) return;
    exps_ = grads.exps + place.panel * grads.exps_stride + place.row * kExpWords<T>;
    // Rows that are not there take part in the products with E.
    for (int64_t w = rows * kExpWords<T>; w < kBlockRows * kExpWords<T>; w += kTileSide) {
      store<T>(exps_ + w, Vec<T>{});
    }
  }

  // One of `steps` that together take all rows.
  void step(int64_t steps) {
    for (credit_ += rows_; credit_ >= kRowsAtOnce * steps; credit_ -= kRowsAtOnce * steps) {
      if (next_ + kRowsAtOnce <= rows_) take<kRowsAtOnce>();
    }
  }

  void finish() {
    while (next_ + kRowsAtOnce <= rows_) take<kRowsAtOnce>();
    while (next_ < rows_) take<1>();
  }

 private:
  template <int M>
  void take() {
    Vec<T> z[M][2];
    load_tile<T, M>(z, z_ + next_ * kPanel<T>, kPanel<T>);
    TilePlace<T> at = at_;
    at.row += next_;
    Epilogue::template run<M>(z, at, exps_ == nullptr ? nullptr : exps_ + next_ * kExpWords<T>);
    next_ += M;
  }

  const T* z_ = nullptr;
  TilePlace<T> at_ = {};
  T* exps_ = nullptr;
  int64_t rows_ = 0, next_ = 0, credit_ = 0;
};

// Row block `block` of the chunk, of kTiles · 16 rows at most.
template <class T, class Epilogue, int kTiles>
void score_tiles(const Samples& samples, const Tile<T>& tile, const RowChunk<T>& chunk,
                 int64_t block, Panels panels, UpcomingRows<T>& upcoming) {
  constexpr int P = kPanel<T>;
  static_assert(P == 2 * kTileSide && kBlockRows == 2 * kTileSide);
  alignas(64) T z[2][kBlockRows * P];
  const Range r = piece(chunk.blocks, block);
  const int64_t words = count_words<T>(samples.dim), steps = words / kTileSide / kParts;
  const T* h = chunk.packed + r.begin * words;
  // A step takes so much of a row of W.
  const int64_t step_bytes = kUnit<T> * element_size(samples.weight.dtype);
  DuePanel<T, Epilogue> due;
  for (int64_t p = panels.begin; p < panels.end; ++p) {
    const char* next[kRowsAhead];
    const int64_t ahead = upcoming.take(next, kRowsAhead);
    const int64_t local = p - panels.tile;
    const T* w = tile.columns + local * words * P;
    clear_square<kTiles>();
    for (int64_t k = 0; k < steps; ++k) {
      multiply_add_parts<kTiles>(h + k * kParts * kTileWords,
                                 {kTileSide, steps * kParts * kTileWords, kTileWords},
                                 w + k * kParts * kTileSide * P);
      for (int64_t j = 0; j < ahead; ++j) {
        for (int64_t b = k * step_bytes; b < (k + 1) * step_bytes; b += kLineBytes) {
          __builtin_prefetch(next[j] + b, 0, 2);
        }
      }
      due.step(steps);
    }
    due.finish();
    store_square<kTiles>(z[p % 2], P);
    due = {z[p % 2], {&tile, &chunk, &samples, r.begin, local, p}, r.end - r.begin};
  }
  due.finish();
}

template <class T, class Epilogue>
SSC_INLINE void score_block(const Samples& samples, const Tile<T>& tile, const RowChunk<T>& chunk,
                            int64_t block, Panels panels, UpcomingRows<T>& upcoming) {
  const Range r = piece(chunk.blocks, block);
  if (r.end - r.begin > kTileSide) {
    score_tiles<T, Epilogue, 2>(samples, tile, chunk, block, panels, upcoming);
  } else {
    score_tiles<T, Epilogue, 1>(samples, tile, chunk, block, panels, upcoming);
  }
}

}  // namespace ssc::SSC_ISA
