// A block's tile of a matmul by tensor cores, float32 accumulators: bfloat16 and float16 by
// mma.m16n8k16, float32 rounded to tf32 by mma.m16n8k8. 128 by 128, eight warps of 64 by 32.
//
// Which rows of a warp's part are those of an mma is free, as long as row() says so. ldmatrix takes
// neighbours, but can't transpose floats: of floats along m a lane takes two neighbours at once, for
// the two halves of a fragment.
#pragma once

#include <type_traits>

#include "csrc/cuda/device/mma.h"
#include "csrc/cuda/device/vector_access.h"
#include "csrc/cuda/tile/operand.h"

namespace ssc::cuda {

template <class T, Order kOrderA, Order kOrderB>
struct MmaTile {
  using Element = T;
  using Accumulator = float;
  static constexpr Order kA = kOrderA, kB = kOrderB;
  static constexpr bool kTensorCores = true;
  static constexpr int kM = 128, kN = 128;
  using TileA = SharedTile<T, kOrderA, kM>;
  using TileB = SharedTile<T, kOrderB, kN>;

  static constexpr int kWarpM = 64, kWarpN = 32;
  static constexpr int kMmaM = kWarpM / 16, kMmaN = kWarpN / 8;
  static constexpr int kMmaK = kChunkBytes * 2 / static_cast<int>(sizeof(T));  // two chunks

  static constexpr int kRows = 2 * kMmaM, kColumns = 2 * kMmaN;
  static constexpr int kLanesPerRow = 4, kWarpsPerRow = kN / kWarpN;

  static constexpr int kAdjacent = 2;
  // The products' A is P, whose floats were rounded to tf32 when they were written.
  static constexpr bool kRoundedA = kOrderB == Order::along_extent;
  static constexpr bool kPairsA = sizeof(T) == 4 && kOrderA == Order::along_extent;

  float c[kMmaM][kMmaN][4];

  __device__ __forceinline__ float& at(int i, int j) { return c[i / 2][j / 2][i % 2 * 2 + j % 2]; }
  __device__ __forceinline__ static int row(int i) {
    const int group = lane() / 4;
    return warp_m() + i / 2 * 16 + (kPairsA ? group * 2 + i % 2 : i % 2 * 8 + group);
  }
  __device__ __forceinline__ static int column(int j) {
    return warp_n() + j / 2 * 8 + lane() % 4 * 2 + j % 2;
  }
  __device__ __forceinline__ static int warp_in_row() { return warp_n() / kWarpN; }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kMmaM; ++i) {
#pragma unroll
      for (int j = 0; j < kMmaN; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) c[i][j][e] = 0.0f;
      }
    }
  }

  // c += A B over one stage's kDepth.
  __device__ __forceinline__ void multiply(const T* a, const T* b) {
#pragma unroll
    for (int k = 0; k < TileA::kDepth; k += kMmaK) {
      uint32_t bs[kMmaN][2];
#pragma unroll
      for (int j = 0; j < kMmaN; j += 2) load_b(bs[j], bs[j + 1], b, warp_n() + j * 8, k);
#pragma unroll
      for (int i = 0; i < kMmaM; ++i) {
        uint32_t as[4];
        load_a(as, a, warp_m() + i * 16, k);
#pragma unroll
        for (int j = 0; j < kMmaN; ++j) mma(c[i][j], as, bs[j]);
      }
    }
  }

 private:
  static constexpr int kChunk = TileA::kChunk;

  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ __forceinline__ static int warp_m() {
    return static_cast<int>(threadIdx.x) / 32 / (kN / kWarpN) * kWarpM;
  }
  __device__ __forceinline__ static int warp_n() {
    return static_cast<int>(threadIdx.x) / 32 % (kN / kWarpN) * kWarpN;
  }

  // ldmatrix takes 8x8 matrices of 16-bit numbers, or of 8x4 floats. Lane 8 q + r addresses row r
  // of matrix q. A's fragment is the matrices (m, k) = (0, 0), (8, 0), (0, half), (8, half) in this
  // order; B's two are (n, k) = (0, 0), (0, half), (8, 0), (8, half).
  __device__ __forceinline__ static void load_a(uint32_t (&out)[4], const T* a, int m, int k) {
    const int q = lane() / 8, r = lane() % 8, group = lane() / 4, pair = lane() % 4;
    if constexpr (kOrderA == Order::along_k) {
      ldmatrix(out, along_k<TileA>(a, q % 2 * 8 + r, m, k / kChunk + q / 2));
    } else if constexpr (sizeof(T) == 2) {
      ldmatrix_trans(out, a + TileA::at(k + q / 2 * 8 + r, m / kChunk + q % 2));
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint2 both =
            load_vector<uint2>(element<TileA>(a, k + half * 4 + pair, m + group * 2));
        out[half * 2] = both.x;
        out[half * 2 + 1] = both.y;
      }
    }
    if constexpr (sizeof(T) == 4 && !kRoundedA) round_to_tf32(out);
  }

  __device__ __forceinline__ static void load_b(uint32_t (&first)[2], uint32_t (&second)[2],
                                                const T* b, int n, int k) {
    const int q = lane() / 8, r = lane() % 8, group = lane() / 4, pair = lane() % 4;
    uint32_t out[4];
    if constexpr (kOrderB == Order::along_k) {
      ldmatrix(out, along_k<TileB>(b, q / 2 * 8 + r, n, k / kChunk + q % 2));
    } else if constexpr (sizeof(T) == 2) {
      ldmatrix_trans(out, b + TileB::at(k + q % 2 * 8 + r, n / kChunk + q / 2));
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        out[e] = __float_as_uint(*element<TileB>(b, k + e % 2 * 4 + pair, n + e / 2 * 8 + group));
      }
    }
    if constexpr (sizeof(T) == 4) round_to_tf32(out);
    first[0] = out[0];
    first[1] = out[1];
    second[0] = out[2];
    second[1] = out[3];
  }

  // A chunk of row `extent` + `row` of a tile along k. Rows that are 16 apart have their chunks at
  // the same places, so that they share an address but for a constant.
  template <class Tile>
  __device__ __forceinline__ static const T* along_k(const T* tile, int row, int extent,
                                                     int chunk) {
    static_assert(Tile::at(16, 1) == Tile::at(0, 1) + 16 * Tile::kRowElements);
    return tile + Tile::at(row, chunk) + extent * Tile::kRowElements;
  }

  // An element of a tile of floats along m or n.
  template <class Tile>
  __device__ __forceinline__ static const T* element(const T* tile, int k, int extent) {
    return tile + Tile::at(k, extent / kChunk) + extent % kChunk;
  }

  __device__ __forceinline__ static void round_to_tf32(uint32_t (&bits)[4]) {
#pragma unroll
    for (uint32_t& x : bits) x = to_tf32(__uint_as_float(x));
  }

  __device__ __forceinline__ static void mma(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      mma_bf16(d, a, b);
    } else if constexpr (std::is_same_v<T, __half>) {
      mma_f16(d, a, b);
    } else {
      static_assert(std::is_same_v<T, float>);
      mma_tf32(d, a, b);
    }
  }
};

}  // namespace ssc::cuda
