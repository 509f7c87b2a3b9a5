// Bits of the pairs of a tile's rows and columns: those that are hits.
#pragma once

#include <cstdint>

#include "csrc/cuda/device/device.h"

namespace ssc::cuda {

// Row r of a tile has kWords words of 32 columns; the columns of a warp lie in kThreadWords of them.
template <class Tile>
struct RowBits {
  static constexpr int kWords = Tile::kN / 32, kThreadWords = kWords / Tile::kWarpsPerRow;

  __align__(16) uint32_t word[Tile::kM][kWords];

  // Whether there are any among the columns of the thread's warp.
  __device__ __forceinline__ bool any(int row) const {
    uint32_t all = 0;
#pragma unroll
    for (int w = 0; w < kThreadWords; ++w) {
      all |= word[row][Tile::warp_in_row() * kThreadWords + w];
    }
    return all != 0;
  }
  __device__ __forceinline__ bool at(int row, int column) const {
    return (word[row][column / 32] >> column % 32 & 1u) != 0;
  }
};

// Logits of hits become −inf.
template <class Tile>
__device__ __forceinline__ void remove_hits(const RowBits<Tile>& hits, Tile& tile) {
  using A = typename Tile::Accumulator;
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    const int row = Tile::row(i);
    if (!hits.any(row)) continue;
#pragma unroll
    for (int j = 0; j < Tile::kColumns; ++j) {
      if (hits.at(row, Tile::column(j))) tile.at(i, j) = -static_cast<A>(__builtin_inf());
    }
  }
}

}  // namespace ssc::cuda
