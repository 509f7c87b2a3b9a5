// A block's tile of a matmul by fused multiply-adds: float32 (whose products tensor cores would
// round to tf32), float64, and the 16-bit types, widened on the way from shared memory, where there
// are no tensor cores for them. 16 by 16 threads, each with kSide by kSide elements of C.
#pragma once

#include "csrc/cuda/device/number.h"
#include "csrc/cuda/device/vector_access.h"
#include "csrc/cuda/tile/operand.h"

namespace ssc::cuda {

template <class T, Order kOrderA, Order kOrderB>
struct FmaTile {
  using Element = T;
  using Accumulator = typename AccumulatorOf<T>::Type;
  static constexpr Order kA = kOrderA, kB = kOrderB;
  static constexpr bool kTensorCores = false;
  static constexpr int kSide = sizeof(Accumulator) == 4 ? 8 : 4;
  static constexpr int kM = 16 * kSide, kN = 16 * kSide;
  using TileA = SharedTile<T, kOrderA, kM>;
  using TileB = SharedTile<T, kOrderB, kN>;
  static constexpr int kChunk = TileA::kChunk;
  static constexpr int kPiece = kChunkBytes / static_cast<int>(sizeof(Accumulator));

  // A thread's rows and columns of C, and which threads share a row: kLanesPerRow neighbouring
  // lanes of one warp.
  static constexpr int kRows = kSide, kColumns = kSide;
  static constexpr int kLanesPerRow = 16, kWarpsPerRow = 1;
  // Columns j, j + 1, ... of a multiple of kAdjacent on are neighbours.
  static constexpr int kAdjacent = kOrderB == Order::along_k ? 1 : kPiece;

  Accumulator c[kSide][kSide];

  __device__ __forceinline__ Accumulator& at(int i, int j) { return c[i][j]; }
  __device__ __forceinline__ static int row(int i) { return place<kOrderA>(thread_y(), i); }
  __device__ __forceinline__ static int column(int j) { return place<kOrderB>(thread_x(), j); }
  __device__ __forceinline__ static int warp_in_row() { return 0; }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
#pragma unroll
      for (int j = 0; j < kSide; ++j) c[i][j] = Accumulator(0);
    }
  }

  // c += A B over one stage's kDepth.
  __device__ __forceinline__ void multiply(const T* a, const T* b) {
#pragma unroll 1  // unrolled, the loads of all chunks are hoisted and take 250 registers
    for (int chunk = 0; chunk < TileA::kDepth / kChunk; ++chunk) {
      Accumulator ak[kSide][kChunk];
      if constexpr (kOrderA == Order::along_k) {
#pragma unroll
        for (int i = 0; i < kSide; ++i) load(ak[i], along_k<TileA>(a, thread_y(), i, chunk));
      }
      if constexpr (kOrderB == Order::along_k) {
#pragma unroll
        for (int j = 0; j < kSide; ++j) {
          Accumulator bk[kChunk];
          load(bk, along_k<TileB>(b, thread_x(), j, chunk));
#pragma unroll
          for (int k = 0; k < kChunk; ++k) {
#pragma unroll
            for (int i = 0; i < kSide; ++i) c[i][j] += ak[i][k] * bk[k];
          }
        }
      } else {
#pragma unroll
        for (int k = 0; k < kChunk; ++k) {
          Accumulator am[kSide], bn[kSide];
          if constexpr (kOrderA == Order::along_k) {
#pragma unroll
            for (int i = 0; i < kSide; ++i) am[i] = ak[i][k];
          } else {
            load_side<TileA>(am, a, chunk * kChunk + k, thread_y());
          }
          load_side<TileB>(bn, b, chunk * kChunk + k, thread_x());
#pragma unroll
          for (int i = 0; i < kSide; ++i) {
#pragma unroll
            for (int j = 0; j < kSide; ++j) c[i][j] += am[i] * bn[j];
          }
        }
      }
    }
  }

 private:
  static_assert(kOrderA == Order::along_k || kOrderB == Order::along_extent);

  __device__ __forceinline__ static int thread_x() { return static_cast<int>(threadIdx.x) % 16; }
  __device__ __forceinline__ static int thread_y() { return static_cast<int>(threadIdx.x) / 16; }

  // Along k, a thread's rows are 16 apart, so that its neighbours' lie in other banks; along m or
  // n, pieces are, of which each is 16 bytes of C.
  template <Order kOrder>
  __device__ __forceinline__ static int place(int thread, int i) {
    if constexpr (kOrder == Order::along_k) return thread + 16 * i;
    return (thread + i / kPiece * 16) * kPiece + i % kPiece;
  }

  // A chunk of a thread's row i. Rows that are 16 apart have their chunks at the same places, so that
  // they share an address but for a constant. Not of 16-bit types: nvcc would load all rows before it
  // widens the first, and spill.
  template <class Tile>
  __device__ __forceinline__ static const T* along_k(const T* tile, int thread, int i, int chunk) {
    static_assert(Tile::at(16, 1) == Tile::at(0, 1) + 16 * Tile::kRowElements);
    if constexpr (sizeof(T) == 2) return tile + Tile::at(thread + 16 * i, chunk);
    return tile + Tile::at(thread, chunk) + i * (16 * Tile::kRowElements);
  }

  template <int kCount>
  __device__ __forceinline__ static void load(Accumulator (&to)[kCount], const T* from) {
    struct __align__(kCount * sizeof(T)) Vector {
      T value[kCount];
    };
    const Vector vector = load_vector<Vector>(from);
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = to_accumulator(vector.value[i]);
  }

  // Row k of a tile along m or n: the thread's kSide elements.
  template <class Tile>
  __device__ __forceinline__ static void load_side(Accumulator (&to)[kSide], const T* from, int k,
                                                   int thread) {
#pragma unroll
    for (int i = 0; i < kSide; i += kPiece) {
      const int extent = (thread + i / kPiece * 16) * kPiece;
      Accumulator piece[kPiece];
      load(piece, from + Tile::at(k, extent / kChunk) + extent % kChunk);
#pragma unroll
      for (int e = 0; e < kPiece; ++e) to[i + e] = piece[e];
    }
  }
};

}  // namespace ssc::cuda
