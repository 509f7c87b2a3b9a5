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
  int64_t row_bytes;                // from row to row
  int64_t rows, width;              // of the operand
  const int64_t* labels = nullptr;  // [rows]; null, if they are to be chosen along k: 0, 1, ...
  int64_t matrix_rows = 0;          // chosen: labels outside [0, matrix_rows) are not followed
  int64_t ignored = 0;              // counted

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

  // Row r of the matrix, or, of one that need not be there, what must not be read.
  __device__ __forceinline__ const T* row(int64_t r) const { return rows_after(data, r); }
  __device__ __forceinline__ const T* rows_after(const T* from, int64_t r) const {
    const uint64_t bytes = static_cast<uint64_t>(r) * static_cast<uint64_t>(row_bytes);
    return reinterpret_cast<const T*>(reinterpret_cast<uintptr_t>(from) + bytes);
  }
};

template <class T>
__host__ __device__ constexpr int64_t row_bytes(int64_t stride) {
  return stride * static_cast<int64_t>(sizeof(T));
}

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
// all rows and widths of the matrix are.
template <int kAlign>
__device__ __forceinline__ void copy_chunk(void* shared, const void* global, int valid) {
  if constexpr (kAlign == kChunkBytes) {
    cp_async_or_zeros(shared, global, valid > 0);
  } else {
    using Piece = std::conditional_t<kAlign == 2, uint16_t, int>;
#pragma unroll
    for (int i = 0; i < kChunkBytes; i += kAlign) {
      auto* const to = reinterpret_cast<Piece*>(static_cast<char*>(shared) + i);
      const auto* const from = reinterpret_cast<const Piece*>(static_cast<const char*>(global) + i);
      if (i >= valid) {
        *to = Piece{};
      } else if constexpr (kAlign == 4) {
        cp_async<kAlign>(to, from);
      } else {  // cp.async has no such copy
        *to = *from;
      }
    }
  }
}

// Calls f with the widest kAlign, as a std::integral_constant, that the rows of both operands have,
// and their widths.
template <class T, Rows kRowsA, Rows kRowsB, class F>
cudaError_t with_alignment(const RowSource<T, kRowsA>& a, const RowSource<T, kRowsB>& b, F&& f) {
  const uintptr_t places = reinterpret_cast<uintptr_t>(a.data) |
                           reinterpret_cast<uintptr_t>(b.data) |
                           static_cast<uintptr_t>(a.row_bytes | b.row_bytes) |
                           static_cast<uintptr_t>(a.width | b.width) * sizeof(T);
  if (places % 16 == 0) return f(std::integral_constant<int, 16>{});
  if constexpr (sizeof(T) == 2) {
    if (places % 4 != 0) return f(std::integral_constant<int, 2>{});
  }
  return f(std::integral_constant<int, 4>{});
}

// Copies the tiles of one operand, one step of k after the other. `begin` is the tile's first m or
// n. All that can be known before is, so that along k a chunk costs a comparison with the step.
template <class T, Rows kRows, Order kOrder, int kExtent, int kAlign>
class OperandCopy {
 public:
  using Tile = SharedTile<T, kOrder, kExtent>;
  static constexpr int kPerThread = Tile::kRows * Tile::kRowChunks / kTileThreads;
  static_assert(kPerThread * kTileThreads == Tile::kRows * Tile::kRowChunks);
  static constexpr bool kWholeChunks = kAlign == kChunkBytes;

  __device__ __forceinline__ OperandCopy(const RowSource<T, kRows>& source, int64_t begin)
      : source_(source), begin_(begin) {
    if constexpr (kOrder == Order::along_extent) bytes_ = bytes_from(begin + chunk_column());
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if constexpr (kOrder == Order::along_extent) {
        steps_[i] = bytes_ > 0 ? steps_in(source.rows - tile_row(i)) : 0;
      } else {
        int64_t row = begin + tile_row(i);
        bool there = row < source.rows;
        if constexpr (kRows == Rows::chosen) {
          if (there && source.labels != nullptr) row = label_at(source.labels + row);
          there = there && source.holds(row);
        }
        from_[i] = (there ? source.row(row) : source.data) + chunk_column();
        steps_[i] = there ? steps_in(source.width - chunk_column()) : 0;
      }
    }
  }

  // Before the first of consecutive steps; along k from step 0, to which move() leads back.
  __device__ __forceinline__ void start(int step) {
    if constexpr (kOrder == Order::along_k) {
      move(step);
    } else {
      const int64_t first = kRows == Rows::chosen ? 0 : row_of(step, 0);
      from_[0] = source_.row(first) + begin_ + chunk_column();
    }
    if constexpr (kLabels) {
      labels_ = source_.labels + row_of(step, 0);
      load_labels(step, 0);
    }
  }

  // Step here + ahead, `here` being where start() and move() have come to. Along k `ahead`, if it is
  // a constant, becomes a part of the instruction.
  __device__ __forceinline__ void copy(int here, int ahead, T* shared) {
    const int step = here + ahead;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      bool there = step < steps_[i];
      const T* from;
      int bytes = kChunkBytes;
      if constexpr (kOrder == Order::along_k) {
        from = from_[i] + ahead * Tile::kDepth;
        if constexpr (kAlign < kChunkBytes) {
          bytes = bytes_from(static_cast<int64_t>(step) * Tile::kDepth + chunk_column());
        }
      } else {
        if constexpr (kLabels) there = there && source_.holds(label_[i]);
        if constexpr (kRows == Rows::chosen) {
          from = source_.rows_after(from_[0], label_[i]);
        } else {
          from = source_.rows_after(from_[0], i * kRowStep);
        }
        if constexpr (kAlign < kChunkBytes) bytes = bytes_;
      }
      copy_chunk<kAlign>(shared + place(i), from, there ? bytes : 0);
    }
    if constexpr (kOrder == Order::along_extent && kRows != Rows::chosen) {
      from_[0] = source_.rows_after(from_[0], Tile::kDepth);
    }
    if constexpr (kLabels) load_labels(here, ahead + 1);
  }

  __device__ __forceinline__ void move(int steps) {
    if constexpr (kOrder == Order::along_k) {
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) from_[i] += static_cast<int64_t>(steps) * Tile::kDepth;
    }
    if constexpr (kLabels) labels_ += steps * Tile::kDepth;
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

  // By name, so that labels can be told from rows where accesses are counted.
  __device__ __forceinline__ static int64_t label_at(const int64_t* place) { return *place; }

  // Along m or n rows differ from step to step, and with them their labels.
  static constexpr bool kLabels = kOrder == Order::along_extent && kRows != Rows::all;

  __device__ __forceinline__ void load_labels(int here, int ahead) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if (here + ahead < steps_[i])
        label_[i] = label_at(labels_ + ahead * Tile::kDepth + i * kRowStep);
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
  // Where it is: along k of each chunk; along m or n of the first one of the step to be copied next,
  // or of row 0 where rows are chosen.
  const T* from_[kOrder == Order::along_k ? kPerThread : 1];
  const int64_t* labels_;      // along m or n, of its rows
  int64_t label_[kPerThread];  // of the step to be copied next
  int bytes_ = 0;              // along m or n, of each chunk
};

}  // namespace ssc::cuda
