// Accidental hits of a tile: the pairs of a row and a sample whose class is the row's target, found
// before the products, a bit for each, so that the logits' epilogue looks at a word per row.
//
// The targets of a block's rows lie in a hash table in shared memory, made once: a slot has the
// first row of its class, and rows with the same target are chained to it. Each tile looks up its
// kN samples, a thread for each.
#pragma once

#include <cstdint>

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
    const int thread = static_cast<int>(threadIdx.x);
    for (int i = thread; i < kSlots; i += kTileThreads) slot_[i] = kNone;
    for (int i = thread; i < Tile::kM; i += kTileThreads) {
      const int64_t row = first_row + i;
      const int64_t target = targets != nullptr && row < batch ? targets[row] : -1;
      target_[i] = target < classes ? target : -1;
      next_[i] = kNone;
    }
    clear_other(0);
    clear_other(1);
    __syncthreads();
    for (int i = thread; i < Tile::kM; i += kTileThreads) {
      if (target_[i] < 0) continue;
      for (unsigned at = first_slot(target_[i]);; at = (at + 1) % kSlots) {
        const int first = atomicCAS(&slot_[at], kNone, i);
        if (first == kNone) break;
        if (target_[first] != target_[i]) continue;
        next_[i] = atomicExch(&next_[first], i);
        break;
      }
    }
    __syncthreads();
  }

  // Before the samples of a tile are looked up. There are two sets of bits: those of the tile
  // before, which all threads have left behind them, are cleared for the one after.
  __device__ __forceinline__ void clear_other(int tile) {
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kM; i += kTileThreads) {
#pragma unroll
      for (uint32_t& word : tiles_[(tile + 1) % 2].word[i]) word = 0;
    }
  }

  __device__ __forceinline__ void look_up(int tile, int column, int64_t id) {
    for (unsigned at = first_slot(id);; at = (at + 1) % kSlots) {
      int row = slot_[at];
      if (row == kNone) return;
      if (target_[row] != id) continue;
      for (; row != kNone; row = next_[row]) {
        atomicOr(&tiles_[tile % 2].word[row][column / 32], 1u << column % 32);
      }
      return;
    }
  }

  __device__ __forceinline__ const RowBits<Tile>& of_tile(int tile) const {
    return tiles_[tile % 2];
  }

 private:
  static constexpr int kNone = -1, kSlots = 4 * Tile::kM;  // at most a quarter full

  // Multiplicative hashing, Knuth, The Art of Computer Programming 3, 6.4.
  __device__ __forceinline__ static unsigned first_slot(int64_t id) {
    return static_cast<unsigned>(static_cast<uint64_t>(id) * 0x9e3779b97f4a7c15ull >> 32) % kSlots;
  }

  int slot_[kSlots];
  int next_[Tile::kM];
  int64_t target_[Tile::kM];  // past the end, or none: -1
  RowBits<Tile> tiles_[2];
};

}  // namespace ssc::cuda
