// The kernel of `score` and of its relatives: the products of a tile, and an epilogue that makes
// logits of them, in registers, and keeps what the row sums need.
//
// A block owns kM rows and one split of the samples, over which it walks in tiles of kN. Global
// traffic: each block reads its rows once per tile of samples and each sampled row once per tile of
// rows, so
//   sizeof(T) D (S ceil(B / kM) + B ceil(S / kN)) bytes; beside them what the epilogue reads of
// rows and samples, its sums of each row and split, and 4 B S bytes where logits are wanted.
// Without ids the samples are all classes in order, S = C: blocks of one split, neighbours in the
// grid, walk over the same rows of W at the same time and share them in L2.
//
// An epilogue E has
//   E::Tile, E::Arguments (problem, parts, logits, logits_stride), E::Shared
//   E::kResidentBlocks                                        that the registers are for
//   E::Running                                                what a thread sums up, with clear()
//   start_block(a, first_row, shared)                         before the first tile
//   load_samples(a, first_row, sample, end, shared)           before the products of each
//   score_tile(a, first_row, sample, tile, running, shared)   logits from products, in place
//   finish_block(a, first_row, running, shared)               after the last
#pragma once

#include "csrc/cuda/device/grid.h"
#include "csrc/cuda/device/number.h"
#include "csrc/cuda/loss/loss.h"
#include "csrc/cuda/loss/running_lse.h"
#include "csrc/cuda/tile/loop.h"
#include "csrc/cuda/tile/store.h"
#include "csrc/cuda/tile/tile.h"

namespace ssc::cuda {

template <class T>
__host__ __device__ RowSource<T, Rows::all> input_rows(const LossProblem<T>& p) {
  return {p.input, row_bytes<T>(p.input_stride), p.batch, p.dim};
}
// The samples before `end`.
template <class T>
__host__ __device__ RowSource<T, Rows::chosen> weight_rows(const LossProblem<T>& p, int64_t end) {
  return {p.weight, row_bytes<T>(p.weight_stride), end, p.dim, p.ids, p.classes};
}

template <class E, int kAlign>
__global__ void __launch_bounds__(kTileThreads, E::kResidentBlocks)
    score_kernel(const __grid_constant__ typename E::Arguments a) {
  using Tile = typename E::Tile;
  if constexpr (!runs_here<Tile>()) {
    __trap();
    return;
  }
  using T = typename Tile::Element;
  T* const stages = dynamic_shared<T>();
  __shared__ __align__(16) typename E::Shared shared;  // pairs of doubles are written at once
  const LossProblem<T>& p = a.problem;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * Tile::kM;
  // Split y takes whole tiles of samples.
  const int64_t tiles = (p.samples + Tile::kN - 1) / Tile::kN;
  const int64_t begin = tiles * blockIdx.y / gridDim.y * Tile::kN;
  const int64_t last = tiles * (blockIdx.y + 1) / gridDim.y * Tile::kN;
  const int64_t end = last < p.samples ? last : p.samples;

  const RowSource<T, Rows::all> input = input_rows(p);
  const RowSource<T, Rows::chosen> weight = weight_rows(p, end);
  OperandCopy<T, Rows::all, Tile::kA, Tile::kM, kAlign> copy_a(input, first_row);
  E::start_block(a, first_row, shared);
  typename E::Running running;
  running.clear();
  for (int64_t sample = begin; sample < end; sample += Tile::kN) {
    E::load_samples(a, first_row, sample, end, shared);
    OperandCopy<T, Rows::chosen, Tile::kB, Tile::kN, kAlign> copy_b(weight, sample);
    Tile tile;
    tile.clear();
    multiply_tile(tile, copy_a, copy_b, 0, tile_steps<Tile>(p.dim), stages);  // publishes `shared`
    E::score_tile(a, first_row, sample, tile, running, shared);
    if (a.logits != nullptr) {
      store_tile(tile, a.logits + first_row * a.logits_stride + sample, a.logits_stride,
                 p.batch - first_row, end - sample, false);
    }
    __syncthreads();
  }
  E::finish_block(a, first_row, running, shared);
}

template <class E, int kAlign>
cudaError_t launch_score(const typename E::Arguments& arguments, cudaStream_t stream) {
  using Tile = typename E::Tile;
  constexpr int kBytes = kPipelineBytes<Tile>;
  constexpr auto kernel = score_kernel<E, kAlign>;
  constexpr int kStatic = sizeof(typename E::Shared);
  const cudaError_t error = allow_shared(kernel, kBytes, kStatic);
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>(ceil_div(arguments.problem.batch, Tile::kM)),
                  static_cast<unsigned>(arguments.parts.splits));
  return launch(kernel, grid, kTileThreads, kBytes, stream, arguments);
}

// Launches the kernel with the epilogue of the tile that the path takes.
template <class T, template <class> class Epilogue, class Arguments>
cudaError_t score_by(const Arguments& arguments, MatmulPath path, cudaStream_t stream) {
  constexpr Order k = Order::along_k;
  const LossProblem<T>& p = arguments.problem;
  if (p.batch == 0) return cudaSuccess;
  return with_tile<T, k, k>(path, [&](auto tile) {
    using E = Epilogue<typename decltype(tile)::type>;
    return with_alignment(input_rows(p), weight_rows(p, p.samples), [&](auto align) {
      return launch_score<E, decltype(align)::value>(arguments, stream);
    });
  });
}

// The (max, sum) of each row over a warp's columns into shared memory, for all threads to read:
// of_row(i) is that of the thread's row i.
template <class Tile, class OfRow>
__device__ __forceinline__ void publish_lse(
    OfRow of_row, OnlineLse<typename Tile::Accumulator> (&lse)[Tile::kWarpsPerRow][Tile::kM]) {
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    const auto all = of_row(i);
    if (threadIdx.x % Tile::kLanesPerRow == 0) lse[Tile::warp_in_row()][Tile::row(i)] = all;
  }
  __syncthreads();
}

}  // namespace ssc::cuda
