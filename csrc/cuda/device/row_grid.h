// Grids over the rows of a matrix, four columns a thread. Threads that a short row leaves over have
// further rows, so that what is done once a row is spread over whole warps.
#pragma once

#include <algorithm>

#include "csrc/core/host_device.h"
#include "csrc/cuda/device/columns.h"
#include "csrc/cuda/device/grid.h"

namespace ssc::cuda {

// The columns of a row: how many there are, and how many of them lie in whole and aligned accesses.
struct RowColumns {
  int64_t count, whole;
};

SSC_HD constexpr RowColumns row_columns(int64_t count, bool aligned) {
  return {count, aligned ? count & -kColumns : 0};
}

// Blocks of kElementThreads with all the warps that a multiprocessor holds, for launch bounds:
// there are registers for each of them. In double, whose numbers take two, there are some blocks fewer.
#if !defined(__CUDA_ARCH__)
constexpr int kMostResident = 1;
#elif __CUDA_ARCH__ < 800
constexpr int kMostResident = 4;
#elif __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000 || __CUDA_ARCH__ == 1030
constexpr int kMostResident = 8;
#else
constexpr int kMostResident = 6;
#endif
template <class A>
constexpr int kFullBlocks =
    sizeof(A) == 8 ? (kMostResident < 5 ? kMostResident : 5) : kMostResident;

struct RowGrid {
  dim3 blocks, threads;
};

// Threads of x share a row; a block has as many rows as it has threads for. Where there are more
// threads than a GPU holds, they do several accesses each, for less of what a thread does once.
inline RowGrid row_grid(int64_t rows, int64_t columns) {
  constexpr int64_t kFull = int64_t{1} << 17, kMostAccesses = 4, kMostBlocks = 64;
  const int64_t accesses = ceil_div(columns, kColumns);
  const int64_t each = std::clamp<int64_t>(rows * accesses / kFull, 1, kMostAccesses);
  const int64_t wanted = std::max<int64_t>(ceil_div(accesses, each), 1);
  unsigned share = 1;
  while (share < kElementThreads && share < wanted) share *= 2;
  const unsigned rows_of_block = kElementThreads / share;
  const int64_t along = std::min<int64_t>(ceil_div(wanted, share), kMostBlocks);
  return {dim3(static_cast<unsigned>(ceil_div(rows, rows_of_block)), static_cast<unsigned>(along)),
          dim3(share, rows_of_block)};
}

// The thread's row, which may be past the last, and the columns that it begins with.
struct RowPlace {
  int64_t row, column;
};

__device__ __forceinline__ RowPlace row_place() {
  return {static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y,
          static_cast<int64_t>(blockIdx.y * blockDim.x + threadIdx.x) * kColumns};
}

// How far its next columns are.
__device__ __forceinline__ int64_t column_step() {
  return static_cast<int64_t>(gridDim.y * blockDim.x) * kColumns;
}

// Columns [column, column + 4) of a row, as far as there are any; the others are zero.
template <class T, class X>
__device__ __forceinline__ Columns<T> read_columns(const X* row, int64_t column,
                                                   const RowColumns& columns) {
  if (column < columns.whole) return read_whole<T>(row + column);
  return read_part<T>(row + column, columns.count - column);
}

template <class X, class T>
__device__ __forceinline__ void write_columns(const Columns<T>& x, X* row, int64_t column,
                                              const RowColumns& columns) {
  if (column < columns.whole) {
    write_whole(x, row + column);
  } else {
    write_part(rounded<X>(x), row + column, columns.count - column);
  }
}

}  // namespace ssc::cuda
