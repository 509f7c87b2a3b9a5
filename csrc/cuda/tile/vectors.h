// The neighbouring columns of a tile's row that a thread takes at once where it goes on computing
// with them, between registers and global memory.
#pragma once

#include "csrc/cuda/device/device.h"

namespace ssc::cuda {

// Vectors of kSize columns of C: as they are, or, where the thread has half as many neighbours, as
// pairs of neighbouring lanes swap them. A warp's access is then of whole sectors for types of half
// the size as well.
template <class Tile, int kSize>
struct TileVectors {
  using A = typename Tile::Accumulator;
  static constexpr bool kSwapped = kSize == 2 * Tile::kAdjacent;
  static_assert(kSwapped || kSize == Tile::kAdjacent);
  static constexpr int kCount = Tile::kColumns / kSize;

  // The first column of vector v.
  __device__ __forceinline__ static int column(int v) {
    const int own = Tile::column(v * kSize);
    if constexpr (!kSwapped) return own;
    const int of_neighbour = Tile::column(v * kSize + Tile::kAdjacent) - Tile::kAdjacent;
    return second_of_pair() ? of_neighbour : own;
  }

  // Vector v of the thread's row i. All lanes of a warp take part.
  __device__ __forceinline__ static void take(A (&to)[kSize], Tile& tile, int i, int v) {
    const int first = v * kSize;
    if constexpr (!kSwapped) {
#pragma unroll
      for (int e = 0; e < kSize; ++e) to[e] = tile.at(i, first + e);
    } else {
#pragma unroll
      for (int e = 0; e < kSize / 2; ++e) {
        const A left = tile.at(i, first + e), right = tile.at(i, first + kSize / 2 + e);
        const A other = __shfl_xor_sync(~0u, second_of_pair() ? left : right, 1);
        to[e] = second_of_pair() ? other : left;
        to[kSize / 2 + e] = second_of_pair() ? right : other;
      }
    }
  }

 private:
  __device__ __forceinline__ static bool second_of_pair() { return threadIdx.x % 2 != 0; }
};

}  // namespace ssc::cuda
