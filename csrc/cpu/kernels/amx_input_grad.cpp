// dH += E Ws of one square of the matrix unit's tiles, over the samples of one tile of them.
#include "csrc/cpu/kernels/amx_tile.h"
#include "csrc/cpu/kernels/stages.h"

namespace ssc::SSC_ISA {
namespace {

template <class T, int kTiles>
void add_products(const Tile<T>& tile, const RowChunk<T>& chunk, int64_t row, int64_t column,
                  int64_t first, int64_t last) {
  constexpr int P = kPanel<T>;
  T* out = chunk.grads.input + row * tile.padded_dim + column;
  const T* w = tile.rows + column * tile.panels * kTileSide * kParts;
  if (first == 0) {
    clear_square<kTiles>();
  } else {
    load_square<kTiles>(out, tile.padded_dim);
  }
  for (int64_t p = first; p < last; ++p, w += kTileSide * kParts * P) {
    const T* e = chunk.grads.exps + p * chunk.grads.exps_stride + row * kExpWords<T>;
    multiply_add_parts<kTiles>(e, {kExpWords<T>, kTileSide * kExpWords<T>, kTileSide}, w);
  }
  store_square<kTiles>(out, tile.padded_dim);
}

}  // namespace

template <class T>
void input_grad(const Tile<T>& tile, const RowChunk<T>& chunk, int64_t block, int64_t column,
                int64_t first, int64_t last) {
  const Range r = piece(chunk.blocks, block);
  if (r.end - r.begin > kTileSide) {
    add_products<T, 2>(tile, chunk, r.begin, column, first, last);
  } else {
    add_products<T, 1>(tile, chunk, r.begin, column, first, last);
  }
}

template void input_grad(const Tile<float>&, const RowChunk<float>&, int64_t, int64_t, int64_t,
                         int64_t);

}  // namespace ssc::SSC_ISA
