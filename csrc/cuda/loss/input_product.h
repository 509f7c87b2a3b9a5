// P Ws, the matmul of dH, and its way out of the registers: where the samples are split, as
// partial sums for input_grad; where they are not, as dH itself, with the same bits.
#pragma once

#include <type_traits>

#include "csrc/cuda/device/number.h"
#include "csrc/cuda/loss/gradients.h"
#include "csrc/cuda/tile/operand.h"
#include "csrc/cuda/tile/store.h"
#include "csrc/cuda/tile/vectors.h"

namespace ssc::cuda {

template <class Tile_>
struct InputProduct {
  using Tile = Tile_;
  using T = typename Tile::Element;
  using A = typename Tile::Accumulator;
  static constexpr Rows kRows = Rows::chosen;

  struct Arguments {
    RowSource<T, Rows::all> a;
    RowSource<T, kRows> b;
    int64_t m, n, k;
    GradChunk<T> chunk;
    InputGrad<T> out;
    int64_t whole;  // columns of W's rows and dH's that lie in whole and aligned vectors
  };

  // Rows of dH and of the targets' W, which a warp accesses in whole sectors of 32 bytes.
  static constexpr int kVector = sizeof(T) == 2 ? 4 : Tile::kAdjacent;
  using Vectors = TileVectors<Tile, kVector>;
  using Vector = Elements<T, kVector>;
  // Its bits: nvcc 13.0 reads a struct with an array element by element (vector_access.h).
  using Bits = std::conditional_t<sizeof(Vector) == 8, uint2, uint4>;
  static_assert(sizeof(Bits) == sizeof(Vector));

  __device__ __forceinline__ static void store(const Arguments& p, int64_t first_m, int64_t first_n,
                                               Tile& tile) {
    if (p.out.splits > 1) {
      A* const out = p.out.partial + static_cast<int64_t>(blockIdx.z) * p.m * p.n;
      store_tile(tile, out + first_m * p.n + first_n, p.n, p.m - first_m, p.n - first_n, false);
      return;
    }
    if (first_m + Tile::kM <= p.m && first_n + Tile::kN <= p.whole) {
      store_grad<true>(p, first_m, first_n, tile);
    } else {
      store_grad<false>(p, first_m, first_n, tile);
    }
  }

 private:
  // kWhole: all of the tile is there, in whole vectors.
  template <bool kWhole>
  __device__ __forceinline__ static void store_grad(const Arguments& p, int64_t first_m,
                                                    int64_t first_n, Tile& tile) {
#pragma unroll
    for (int i = 0; i < Tile::kRows; i += kTogether) {
      store_rows<kWhole>(p, first_m, first_n, tile, i);
    }
  }

  // Rows whose reads of W are under way together, as registers allow.
  static constexpr int kTogether = Tile::kRows < 4 ? Tile::kRows : 4;

  struct Row {
    bool there, counts, has_target;
    A coefficient;  // of the target's row of W
    const T* target;
    T* grad;
  };

  __device__ __forceinline__ static Row row_of(const Arguments& p, int64_t first_n, int64_t r) {
    const LossProblem<T>& problem = p.chunk.problem;
    const bool there = r < p.m;
    const int64_t target = there ? problem.target[r] : problem.ignore_index;
    const bool counts = target != problem.ignore_index;
    const bool has_target =
        counts && static_cast<uint64_t>(target) < static_cast<uint64_t>(problem.classes);
    return {there,
            counts,
            has_target,
            has_target ? p.chunk.target_coefficient[r] : A(0),
            problem.weight + (has_target ? target : 0) * problem.weight_stride + first_n,
            p.out.grad + r * p.out.grad_stride + first_n};
  }

  // dH_i = κ (Σ_s P_is W_s + c_i W_t), term by term as input_grad adds them. 0 in a row that does
  // not count, whatever the products of its zeros with W are.
  template <bool kWhole>
  __device__ __forceinline__ static void store_rows(const Arguments& p, int64_t first_m,
                                                    int64_t first_n, Tile& tile, int first) {
    const A kappa = *p.chunk.kappa;
    const int64_t count = p.n - first_n, whole = p.whole - first_n;
    Row rows[kTogether];
    Bits targets[kTogether][Vectors::kCount];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      rows[i] = row_of(p, first_n, first_m + Tile::row(first + i));
#pragma unroll
      for (int v = 0; v < Vectors::kCount; ++v) {
        const int column = Vectors::column(v);
        targets[i][v] = {};
        if (rows[i].has_target) {
          targets[i][v] = read(rows[i].target + column, kWhole || column < whole, count - column);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
#pragma unroll
      for (int v = 0; v < Vectors::kCount; ++v) {
        const int column = Vectors::column(v);
        A sum[kVector];
        Vectors::take(sum, tile, first + i, v);
        Vector w;
        memcpy(&w, &targets[i][v], sizeof(w));
#pragma unroll
        for (int e = 0; e < kVector; ++e) {
          sum[e] = rows[i].counts ? A(0) + sum[e] : A(0);
          if (rows[i].has_target) {
            sum[e] += rows[i].coefficient * to_accumulator(w.at[e]);
          }
          sum[e] *= kappa;
        }
        if (kWhole || rows[i].there) {
          write(rows[i].grad + column, sum, kWhole || column < whole, count - column);
        }
      }
    }
  }

  __device__ __forceinline__ static Bits read(const T* from, bool whole, int64_t left) {
    if (whole) return load_vector<Bits>(from);
    Vector x = {};
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      if (e < left) x.at[e] = from[e];
    }
    Bits bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
  }

  __device__ __forceinline__ static void write(T* to, const A (&x)[kVector], bool whole,
                                               int64_t left) {
    if (!whole) {
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        if (e < left) to[e] = to_storage<T>(x[e]);
      }
    } else if constexpr (sizeof(T) == 2) {
      store_vector(to, uint2{to_storage_pair<T>(x[0], x[1]), to_storage_pair<T>(x[2], x[3])});
    } else {
      store_adjacent(to, x);
    }
  }
};

}  // namespace ssc::cuda
