// Accidental hits of a tile: the pairs of a row and a sample whose class is the row's target, found
// before the products, a bit for each, so that the logits' epilogue looks at a word per row.
//
// The targets of a block's rows lie in a hash table, made once, whose entries are the rows. Each
// tile looks up its kN samples, a thread for each.
#pragma once

#include <cstdint>

#include "csrc/cuda/loss/class_table.h"
#include "csrc/cuda/loss/row_bits.h"
#include "csrc/cuda/tile/operand.h"

namespace ssc::cuda {

template <class Tile>
class TargetHits {
 public:
  // With targets null, no row has one. Classes outside [0, classes) are nobody's. All threads take
  // part, and the last barrier makes the table visible.
  __device__ __forceinline__ void start(const int64_t* targets, int64_t first_row, int64_t batch,
                                        int64_t classes) {
    clear_other(0);
    clear_other(1);
    table_.template fill<kTileThreads>([&](int i) -> int64_t {
      const int64_t row = first_row + i;
      const int64_t target = targets != nullptr && row < batch ? targets[row] : -1;
      return target < classes ? target : -1;
    });
  }

  // Before the samples of a tile are looked up. There are two sets of bits: those of the tile
  // before, which all threads have left behind them, are cleared for the one after. By the last
  // threads, because the first look the samples up.
  __device__ __forceinline__ void clear_other(int tile) {
    const int row = static_cast<int>(threadIdx.x) - (kTileThreads - Tile::kM);
    if (row < 0) return;
#pragma unroll
    for (uint32_t& word : tiles_[(tile + 1) % 2].word[row]) word = 0;
  }

  __device__ __forceinline__ void look_up(int tile, int column, int64_t id) {
    table_.look_up(id, [&](int row) {
      atomicOr(&tiles_[tile % 2].word[row][column / 32], 1u << column % 32);
    });
  }

  __device__ __forceinline__ const RowBits<Tile>& of_tile(int tile) const {
    return tiles_[tile % 2];
  }

 private:
  ClassTable<Tile::kM, 4 * Tile::kM> table_;  // at most a quarter full
  RowBits<Tile> tiles_[2];
};

}  // namespace ssc::cuda
