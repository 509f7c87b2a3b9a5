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

#include "csrc/cuda/device/async_copy.h"
#include "csrc/cuda/device/device.h"

namespace ssc::cuda {

constexpr int kTileThreads = 256;
constexpr int kDepthBytes = 64;
constexpr int kChunkBytes = 16;

enum class Order { along_k, along_extent };

// Which rows of a matrix in device memory are those of an operand, by a label for each of them.
enum class Rows {
  all,      // no labels: row r of the matrix
  chosen,   // row label[r] of the matrix
  counted,  // row r, unless label[r] is `ignored`: then 0 times what it holds need not be 0
};

template <class T, Rows kRows>
struct RowSource {
  const T* data;
  int64_t stride;                   // elements from row to row
  int64_t rows, width;              // of the operand
  const int64_t* labels = nullptr;  // [rows]; null, if they are to be chosen: 0, 1, ...
  int64_t matrix_rows = 0;          // chosen: labels outside [0, matrix_rows) are not followed
  int64_t ignored = 0;              // counted

  // Loaded some time before the row is asked for, so that nothing waits for it.
  __device__ __forceinline__ int64_t label(int64_t r) const {
    if (kRows == Rows::chosen && labels == nullptr) return r;
    return kRows != Rows::all && r < rows ? labels[r] : 0;
  }

  // Null for what is left out or not there: it reads as zeros.
  __device__ __forceinline__ const T* row(int64_t r, int64_t label) const {
    bool there = r < rows;
    if constexpr (kRows == Rows::chosen) {
      there = there && static_cast<uint64_t>(label) < static_cast<uint64_t>(matrix_rows);
    } else if constexpr (kRows == Rows::counted) {
      there = there && label != ignored;
    }
    return there ? data + (kRows == Rows::chosen ? label : r) * stride : nullptr;
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
template <class T, Rows kRows, Order kOrder, int kExtent, int kAlign>
class OperandCopy {
 public:
  using Tile = SharedTile<T, kOrder, kExtent>;
  static constexpr int kPerThread = Tile::kRows * Tile::kRowChunks / kTileThreads;
  static_assert(kPerThread * kTileThreads == Tile::kRows * Tile::kRowChunks);

  __device__ __forceinline__ OperandCopy(const RowSource<T, kRows>& source, int64_t begin)
      : source_(source), begin_(begin) {
    if constexpr (kOrder == Order::along_extent) {
      bytes_ = bytes_from(begin + chunk_column());
    } else {
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        const int64_t r = begin + tile_row(i);
        const T* const row = source.row(r, source.label(r));
        row_[i] = row == nullptr ? source.data : row;
        there_ |= static_cast<unsigned>(row != nullptr) << i;
      }
    }
  }

  // Before the first of consecutive steps.
  __device__ __forceinline__ void start(int step) {
    if constexpr (kOrder == Order::along_extent) {
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) label_[i] = source_.label(step_row(step, i));
    }
  }

  // Where nothing is to be read, the address doesn't matter.
  __device__ __forceinline__ void copy(int step, T* shared) {
    if constexpr (kOrder == Order::along_k) {
      const int64_t column = static_cast<int64_t>(step) * Tile::kDepth + chunk_column();
      const int bytes = bytes_from(column);
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        copy_chunk<kAlign>(shared + place(i), row_[i] + column, (there_ >> i & 1) != 0 ? bytes : 0);
      }
    } else {
      const int64_t column = begin_ + chunk_column();
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        const T* const row = source_.row(step_row(step, i), label_[i]);
        copy_chunk<kAlign>(shared + place(i), row == nullptr ? source_.data : row + column,
                           row == nullptr ? 0 : bytes_);
      }
      start(step + 1);
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

  __device__ __forceinline__ static int chunk_column() { return tile_chunk() * Tile::kChunk; }
  __device__ __forceinline__ static int place(int i) { return Tile::at(tile_row(i), tile_chunk()); }

  __device__ __forceinline__ static int64_t step_row(int step, int i) {
    return static_cast<int64_t>(step) * Tile::kDepth + tile_row(i);
  }

  // The bytes of a chunk at the column that lie inside the operand.
  __device__ __forceinline__ int bytes_from(int64_t column) const {
    const int64_t left = source_.width - column;
    const int elements = left <= 0             ? 0
                         : left < Tile::kChunk ? static_cast<int>(left)
                                               : Tile::kChunk;
    return elements * static_cast<int>(sizeof(T));
  }

  const RowSource<T, kRows>& source_;
  const int64_t begin_;
  // Along k the rows stay the same, with a bit of there_ for each; along m or n the columns do, and
  // the rows of the next step are known by their labels.
  const T* row_[kOrder == Order::along_k ? kPerThread : 1];
  unsigned there_ = 0;
  int64_t label_[kOrder == Order::along_k ? 1 : kPerThread];
  int bytes_ = 0;
};

}  // namespace ssc::cuda
