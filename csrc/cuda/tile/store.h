// A tile of a matmul's result from registers to global memory.
#pragma once

#include "csrc/cuda/device/vector_access.h"
#include "csrc/cuda/tile/operand.h"

namespace ssc::cuda {

template <class A, int kCount>
struct __align__(kCount * sizeof(A)) Adjacent {
  A value[kCount];
};

// As store_vector, of values that lie in registers of their own type: nothing is moved before.
template <class A, int kCount>
__device__ __forceinline__ void store_adjacent(A* to, const A (&x)[kCount]) {
#if !defined(SSC_SIMT)
  if constexpr (kCount == 2 && sizeof(A) == 4) {
    asm volatile("st.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(x[0]), "f"(x[1]) : "memory");
  } else if constexpr (kCount == 2) {
    asm volatile("st.v2.f64 [%0], {%1, %2};" ::"l"(to), "d"(x[0]), "d"(x[1]) : "memory");
  } else if constexpr (kCount == 4) {
    asm volatile("st.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(x[0]), "f"(x[1]), "f"(x[2]),
                 "f"(x[3])
                 : "memory");
  } else {
    *to = x[0];
  }
#else
  Adjacent<A, kCount> vector;
#pragma unroll
  for (int e = 0; e < kCount; ++e) vector.value[e] = x[e];
  store_vector(to, vector);
#endif
}

// The elements m < rows and n < columns.
template <class Tile>
__device__ __forceinline__ void store_part(Tile& tile, typename Tile::Accumulator* out,
                                           int64_t stride, int64_t rows, int64_t columns,
                                           bool accumulate, bool aligned) {
  using A = typename Tile::Accumulator;
  constexpr int kAdjacent = Tile::kAdjacent;
  using Vector = Adjacent<A, kAdjacent>;
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

// All of them, in a fraction of the instructions.
template <bool kAccumulate, class Tile>
__device__ __forceinline__ void store_whole(Tile& tile, typename Tile::Accumulator* out,
                                            int64_t stride) {
  using A = typename Tile::Accumulator;
  constexpr int kAdjacent = Tile::kAdjacent;
  A* to = out + Tile::row(0) * stride + Tile::column(0);
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    if (i > 0) to += (Tile::row(i) - Tile::row(i - 1)) * stride;
#pragma unroll
    for (int j = 0; j < Tile::kColumns; j += kAdjacent) {
      A* const place = to + (Tile::column(j) - Tile::column(0));
      A sum[kAdjacent];
#pragma unroll
      for (int e = 0; e < kAdjacent; ++e) sum[e] = tile.at(i, j + e);
      if constexpr (kAccumulate) {
        const auto before = load_vector<Adjacent<A, kAdjacent>>(place);
#pragma unroll
        for (int e = 0; e < kAdjacent; ++e) sum[e] += before.value[e];
      }
      store_adjacent(place, sum);
    }
  }
}

// out[m][n] (+)= the tile's element, for m < rows and n < columns; row m of the tile is at
// out + m · stride. Neighbouring columns go as one store where all rows are aligned for it: single
// ones would fill half a sector each.
template <class Tile>
__device__ __forceinline__ void store_tile(Tile& tile, typename Tile::Accumulator* out,
                                           int64_t stride, int64_t rows, int64_t columns,
                                           bool accumulate) {
  using A = typename Tile::Accumulator;
  const bool aligned =
      (reinterpret_cast<uintptr_t>(out) | static_cast<uintptr_t>(stride) * sizeof(A)) %
          sizeof(Adjacent<A, Tile::kAdjacent>) ==
      0;
  if (!aligned || rows < Tile::kM || columns < Tile::kN) {
    store_part(tile, out, stride, rows, columns, accumulate, aligned);
  } else if (accumulate) {
    store_whole<true>(tile, out, stride);
  } else {
    store_whole<false>(tile, out, stride);
  }
}

}  // namespace ssc::cuda
