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

  // Row r < rows has it. Loaded some time before it is asked for, so that nothing waits.
  __device__ __forceinline__ int64_t label(int64_t r) const {
    if constexpr (kRows == Rows::all) return 0;
    return kRows == Rows::chosen && labels == nullptr ? r : labels[r];
  }

  // Whether a row with this label is read, not zeros.
  __device__ __forceinline__ bool holds(int64_t label) const {
    if constexpr (kRows == Rows::chosen) {
      return static_cast<uint64_t>(label) < static_cast<uint64_t>(matrix_rows);
    } else if constexpr (kRows == Rows::counted) {
      return label != ignored;
    } else {
      return true;
    }
  }

  // A row that holds something.
  __device__ __forceinline__ const T* row(int64_t r, int64_t label) const {
    return data + (kRows == Rows::chosen ? label : r) * stride;
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
  __device__ __forceinline__ static constexpr int at(int row, int chunk) {
    int place = 0;
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

// The first `valid` bytes of a chunk, and zeros in the place of the others; multiples of kAlign, as
// all rows and widths of the matrix are. (cp.async can fill up with zeros itself, but that takes five
// more of the machine's instructions than a predicate.)
template <int kAlign>
__device__ __forceinline__ void copy_chunk(void* shared, const void* global, int valid) {
  using Piece =
      std::conditional_t<kAlign == 2, uint16_t, std::conditional_t<kAlign == 4, int, int4>>;
#pragma unroll
  for (int i = 0; i < kChunkBytes; i += kAlign) {
    auto* const to = reinterpret_cast<Piece*>(static_cast<char*>(shared) + i);
    const auto* const from = reinterpret_cast<const Piece*>(static_cast<const char*>(global) + i);
    if (i >= valid) {
      *to = Piece{};
    } else if constexpr (kAlign >= 4) {
      cp_async<kAlign>(to, from);
    } else {  // cp.async has no such copy
      *to = *from;
    }
  }
}

// Calls f with the widest kAlign, as a std::integral_constant, that the rows of both operands have,
// and their widths.
template <class T, Rows kRowsA, Rows kRowsB, class F>
cudaError_t with_alignment(const RowSource<T, kRowsA>& a, const RowSource<T, kRowsB>& b, F&& f) {
  const uintptr_t places =
      reinterpret_cast<uintptr_t>(a.data) | reinterpret_cast<uintptr_t>(b.data) |
      static_cast<uintptr_t>(a.stride | b.stride | a.width | b.width) * sizeof(T);
  if (places % 16 == 0) return f(std::integral_constant<int, 16>{});
  if constexpr (sizeof(T) == 2) {
    if (places % 4 != 0) return f(std::integral_constant<int, 2>{});
  }
  return f(std::integral_constant<int, 4>{});
}

// Copies the tiles of one operand, one step of k after the other. `begin` is the tile's first m or
// n. All that can be known before is: a chunk costs a comparison with the step and an address.
template <class T, Rows kRows, Order kOrder, int kExtent, int kAlign>
class OperandCopy {
 public:
  using Tile = SharedTile<T, kOrder, kExtent>;
  static constexpr int kPerThread = Tile::kRows * Tile::kRowChunks / kTileThreads;
  static_assert(kPerThread * kTileThreads == Tile::kRows * Tile::kRowChunks);

  __device__ __forceinline__ OperandCopy(const RowSource<T, kRows>& source, int64_t begin)
      : source_(source), begin_(begin) {
    if constexpr (kOrder == Order::along_extent) bytes_ = bytes_from(begin + chunk_column());
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if constexpr (kOrder == Order::along_extent) {
        steps_[i] = bytes_ > 0 ? steps_in(source.rows - tile_row(i)) : 0;
      } else {
        const int64_t r = begin + tile_row(i);
        const int64_t label = r < source.rows ? source.label(r) : 0;
        const bool there = r < source.rows && source.holds(label);
        from_[i] = (there ? source.row(r, label) : source.data) + chunk_column();
        steps_[i] = there ? steps_in(source.width - chunk_column()) : 0;
      }
    }
  }

  // Before the first of consecutive steps.
  __device__ __forceinline__ void start(int step) {
    if constexpr (kOrder == Order::along_extent) {
      from_[0] = source_.data + begin_ + chunk_column();
      if constexpr (kRows != Rows::chosen) from_[0] += row_of(step, 0) * source_.stride;
      load_labels(step);
    }
  }

  __device__ __forceinline__ void copy(int step, T* shared) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      bool there = step < steps_[i];
      const T* from;
      int bytes = kChunkBytes;
      if constexpr (kOrder == Order::along_k) {
        const int64_t begin = static_cast<int64_t>(step) * Tile::kDepth;
        from = from_[i] + begin;
        if constexpr (kAlign < kChunkBytes) bytes = bytes_from(begin + chunk_column());
      } else {
        if constexpr (kRows != Rows::all) there = there && source_.holds(label_[i]);
        if constexpr (kRows == Rows::chosen) {
          from = from_[0] + (there ? label_[i] : 0) * source_.stride;
        } else {
          from = from_[0] + i * kRowStep * source_.stride;
        }
        if constexpr (kAlign < kChunkBytes) bytes = bytes_;
      }
      copy_chunk<kAlign>(shared + place(i), from, there ? bytes : 0);
    }
    if constexpr (kOrder == Order::along_extent) {
      if constexpr (kRows != Rows::chosen) from_[0] += Tile::kDepth * source_.stride;
      load_labels(step + 1);
    }
  }

 private:
  // Neighbouring threads copy neighbouring chunks of a row.
  static constexpr int kRowStep = kTileThreads / Tile::kRowChunks;
  __device__ __forceinline__ static int tile_row(int i) {
    return static_cast<int>(threadIdx.x) / Tile::kRowChunks + i * kRowStep;
  }
  __device__ __forceinline__ static int tile_chunk() {
    return static_cast<int>(threadIdx.x) % Tile::kRowChunks;
  }
  __device__ __forceinline__ static int64_t row_of(int step, int i) {
    return static_cast<int64_t>(step) * Tile::kDepth + tile_row(i);
  }

  __device__ __forceinline__ static int chunk_column() { return tile_chunk() * Tile::kChunk; }
  __device__ __forceinline__ static int place(int i) { return Tile::at(tile_row(i), tile_chunk()); }

  __device__ __forceinline__ void load_labels(int step) {
    if constexpr (kRows != Rows::all) {
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        if (step < steps_[i]) label_[i] = source_.label(row_of(step, i));
      }
    }
  }

  // The steps that begin before something that is `left` elements of k away from the first.
  __device__ __forceinline__ static int steps_in(int64_t left) {
    return left <= 0 ? 0 : static_cast<int>((left + Tile::kDepth - 1) / Tile::kDepth);
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
  int steps_[kPerThread];  // in which there is something to read: those before this one
  // Where it is: along k of each row, which stay the same; along m or n of the first row of a step,
  // or of row 0 where rows are chosen.
  const T* from_[kOrder == Order::along_k ? kPerThread : 1];
  int64_t label_[kPerThread];  // along m or n, of the rows of the next step
  int bytes_ = 0;              // along m or n, of each chunk
};

}  // namespace ssc::cuda
