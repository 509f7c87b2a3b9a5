// The operands of the tiled matmuls: where their rows lie in global memory, how a tile of them lies
// in shared memory, and the copy between the two.
//
// A matmul C[m][n] = Σ_k A[m][k] B[k][n] reads its operands in either order:
//   z   = H Ws^T    H: rows are m, along k         Ws: rows are n, along k
//   dH  = P Ws      P: rows are m, along k         Ws: rows are k, along n
//   dWs = P^T H     P: rows are k, along m         H:  rows are k, along n
// "Rows" are always what is contiguous in global memory, sampled rows being picked by their ids on
// the way: the gather costs no pass of its own.
//
// In shared memory a tile has kExtent (of m or n) by kDepth (of k) elements, 64 bytes of k:
//   along k      [kExtent][64 bytes]             chunk c of row r at place c ^ (r / 2) % 4
//   along m, n   [kDepth][kExtent elements]      chunk c of row r at place c ^ r % 8 (16-bit types)
//                                                                       or c ^ 2 (r % 4)
// in chunks of 16 bytes, placed so that ldmatrix, the fragments of tf32 and the 16-byte loads of
// the FMA path find their eight rows or columns in 32 different banks.
#pragma once

#include <cstdint>
#include <type_traits>

#include "csrc/cuda/async_copy.h"
#include "csrc/cuda/device.h"

namespace ssc::cuda {

constexpr int kTileThreads = 256;
constexpr int kDepthBytes = 64;
constexpr int kChunkBytes = 16;

enum class Order { along_k, along_extent };

// Rows of a matrix in device memory, all of them or, through ids, a choice.
template <class T>
struct RowSource {
  const T* data;
  int64_t stride;       // elements from row to row
  const int64_t* ids;   // [rows] or null: row r of the operand is row ids[r] of the matrix
  int64_t rows, width;  // of the operand
  int64_t matrix_rows;  // ids are in [0, matrix_rows)
  const int64_t* target = nullptr;  // [rows] or null: rows with target[r] == ignore_index are left
  int64_t ignore_index = 0;         // out, since 0 times what they hold need not be 0

  // Null for what is left out or not there, past the operand's rows or the matrix's: it reads as
  // zeros.
  __device__ __forceinline__ const T* row(int64_t r) const {
    if (r >= rows || (target != nullptr && target[r] == ignore_index)) return nullptr;
    const int64_t id = ids == nullptr ? r : ids[r];
    return static_cast<uint64_t>(id) < static_cast<uint64_t>(matrix_rows) ? data + id * stride
                                                                          : nullptr;
  }
};

template <class T, Order kOrder, int kExtent>
struct SharedTile {
  static constexpr int kDepth = kDepthBytes / static_cast<int>(sizeof(T));
  static constexpr int kChunk = kChunkBytes / static_cast<int>(sizeof(T));
  static constexpr int kRows = kOrder == Order::along_k ? kExtent : kDepth;
  static constexpr int kRowElements = kOrder == Order::along_k ? kDepth : kExtent;
  static constexpr int kRowChunks = kRowElements / kChunk;
  static constexpr int kElements = kExtent * kDepth;

  // The element at which chunk `chunk` of row `row` begins.
  __device__ __forceinline__ static int at(int row, int chunk) {
    int place;
    if constexpr (kOrder == Order::along_k) {
      place = chunk ^ ((row >> 1) & 3);
    } else if constexpr (sizeof(T) == 2) {
      place = chunk ^ (row & 7);
    } else {
      place = chunk ^ ((row & 3) << 1);
    }
    return row * kRowElements + place * kChunk;
  }
};

// 16 bytes, of which the first `valid` are read and the rest becomes zero, when all rows of the
// matrix begin at multiples of kAlign bytes.
template <int kAlign>
__device__ __forceinline__ void copy_chunk(void* shared, const void* global, int valid) {
  if constexpr (kAlign == 16) {
    cp_async_zfill<16>(shared, global, valid);
  } else if constexpr (kAlign >= 4) {
#pragma unroll
    for (int i = 0; i < kChunkBytes; i += kAlign) {
      const int left = valid - i;
      cp_async_zfill<kAlign>(static_cast<char*>(shared) + i, static_cast<const char*>(global) + i,
                             left < 0        ? 0
                             : left < kAlign ? left
                                             : kAlign);
    }
  } else {  // 2 bytes: cp.async has no such copy
#pragma unroll
    for (int i = 0; i < kChunkBytes / 2; ++i) {
      static_cast<uint16_t*>(shared)[i] =
          2 * i < valid ? static_cast<const uint16_t*>(global)[i] : uint16_t{0};
    }
  }
}

// Calls f with the widest kAlign, as a std::integral_constant, that the rows of both matrices have.
template <class T, class F>
cudaError_t with_alignment(const T* a, int64_t a_stride, const T* b, int64_t b_stride, F&& f) {
  const uintptr_t places = reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) |
                           static_cast<uintptr_t>(a_stride | b_stride) * sizeof(T);
  if (places % 16 == 0) return f(std::integral_constant<int, 16>{});
  if constexpr (sizeof(T) == 2) {
    if (places % 4 != 0) return f(std::integral_constant<int, 2>{});
  }
  return f(std::integral_constant<int, 4>{});
}

// Copies the tiles of one operand, one step of k after the other. `begin` is the tile's first m or
// n.
template <class T, Order kOrder, int kExtent, int kAlign>
class OperandCopy {
 public:
  using Tile = SharedTile<T, kOrder, kExtent>;
  static constexpr int kPerThread = Tile::kRows * Tile::kRowChunks / kTileThreads;
  static_assert(kPerThread * kTileThreads == Tile::kRows * Tile::kRowChunks);

  __device__ __forceinline__ OperandCopy(const RowSource<T>& source, int64_t begin)
      : source_(source), begin_(begin) {
    if constexpr (kOrder == Order::along_k) {
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        row_[i] = source.row(begin + tile_row(i));
      }
    }
  }

  __device__ __forceinline__ void copy(int step, T* shared) const {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const T* row;
      int64_t column;
      if constexpr (kOrder == Order::along_k) {
        row = row_[i];
        column = static_cast<int64_t>(step) * Tile::kDepth + tile_chunk() * Tile::kChunk;
      } else {
        row = source_.row(static_cast<int64_t>(step) * Tile::kDepth + tile_row(i));
        column = begin_ + tile_chunk() * Tile::kChunk;
      }
      const int64_t left = row == nullptr ? 0 : source_.width - column;
      const int valid = left <= 0 ? 0 : left < Tile::kChunk ? static_cast<int>(left) : Tile::kChunk;
      copy_chunk<kAlign>(shared + Tile::at(tile_row(i), tile_chunk()),
                         valid > 0 ? row + column : source_.data,
                         valid * static_cast<int>(sizeof(T)));
    }
  }

 private:
  // Neighbouring threads copy neighbouring chunks of a row.
  __device__ __forceinline__ static int tile_row(int i) {
    return static_cast<int>(threadIdx.x) / Tile::kRowChunks + i * (kTileThreads / Tile::kRowChunks);
  }
  __device__ __forceinline__ static int tile_chunk() {
    return static_cast<int>(threadIdx.x) % Tile::kRowChunks;
  }

  const RowSource<T>& source_;
  const int64_t begin_;
  const T* row_[kOrder == Order::along_k ? kPerThread : 1];
};

}  // namespace ssc::cuda
