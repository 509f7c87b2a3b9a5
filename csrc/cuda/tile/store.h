// A tile of a matmul's result from registers to global memory.
#pragma once

#include "csrc/cuda/device/vector_access.h"
#include "csrc/cuda/tile/operand.h"

namespace ssc::cuda {

template <class A, int kCount>
struct __align__(kCount * sizeof(A)) Adjacent {
  A value[kCount];
};

// out[m][n] (+)= the tile's element, for m < rows and n < columns; row m of the tile is at
// out + m · stride. Neighbouring columns go as one store where all rows are aligned for it: single
// ones would fill half a sector each.
template <class Tile>
__device__ __forceinline__ void store_tile(Tile& tile, typename Tile::Accumulator* out,
                                           int64_t stride, int64_t rows, int64_t columns,
                                           bool accumulate) {
  using A = typename Tile::Accumulator;
  constexpr int kAdjacent = Tile::kAdjacent;
  using Vector = Adjacent<A, kAdjacent>;
  const bool aligned =
      (reinterpret_cast<uintptr_t>(out) | static_cast<uintptr_t>(stride) * sizeof(A)) %
          sizeof(Vector) ==
      0;
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    const int row = Tile::row(i);
    if (row >= rows) continue;
#pragma unroll
    for (int j = 0; j < Tile::kColumns; j += kAdjacent) {
      const int column = Tile::column(j);
      A* const to = out + row * stride + column;
      if (aligned && column + kAdjacent <= columns) {
        Vector vector = accumulate ? load_vector<Vector>(to) : Vector{};
#pragma unroll
        for (int e = 0; e < kAdjacent; ++e) vector.value[e] += tile.at(i, j + e);
        store_vector(to, vector);
      } else {
#pragma unroll
        for (int e = 0; e < kAdjacent; ++e) {
          if (column + e < columns) to[e] = (accumulate ? to[e] : A(0)) + tile.at(i, j + e);
        }
      }
    }
  }
}

}  // namespace ssc::cuda
