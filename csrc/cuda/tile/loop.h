// The main loop of all matmuls: a pipeline of kStages tiles in shared memory, filled by cp.async
// while the ones before are multiplied.
#pragma once

#include "csrc/cuda/tile/operand.h"

namespace ssc::cuda {

constexpr int kStages = 3;

template <class Tile>
constexpr int kStageElements = Tile::TileA::kElements + Tile::TileB::kElements;

// Bytes of dynamic shared memory that multiply_tile needs.
template <class Tile>
constexpr int kPipelineBytes =
    kStages * kStageElements<Tile> * static_cast<int>(sizeof(typename Tile::Element));

// tile += A B over steps [begin, end) of k, kDepth each. All threads of the block take part;
// afterwards `shared` is free. One barrier a step: the stage that is filled next is the one that
// all threads have left when they pass it.
//
// Tensor cores wait for instructions, so their steps are unrolled by the stages: where each lies,
// and how far its rows are from the first's, become constants in the instructions. Where chunks are
// copied in pieces, registers don't suffice, and multiply-adds take more time than all the rest.
template <class Tile, class CopyA, class CopyB>
__device__ __forceinline__ void multiply_tile(Tile& tile, CopyA& a, CopyB& b, int begin, int end,
                                              typename Tile::Element* shared) {
  using T = typename Tile::Element;
  constexpr int kStage = kStageElements<Tile> * static_cast<int>(sizeof(T));
  constexpr bool kUnrolled = Tile::kTensorCores && CopyA::kWholeChunks;
  constexpr int kSteps = kUnrolled ? kStages : 1;
  char* const bytes = reinterpret_cast<char*>(shared);
  const auto next = [](int stage) { return stage == (kStages - 1) * kStage ? 0 : stage + kStage; };
  a.start(begin);
  b.start(begin);
  int filled = 0, used = 0;  // stages, as offsets in bytes: added to any other with nothing else
  const auto fill = [&](int step, int ahead) {
    if (step + ahead < end) {
      T* const to = reinterpret_cast<T*>(bytes + (kUnrolled ? ahead % kStages * kStage : filled));
      a.copy(step, ahead, to);
      b.copy(step, ahead, to + Tile::TileA::kElements);
    }
    cp_async_commit();  // an empty group at the end keeps the count of those to wait for
    filled = next(filled);
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) fill(begin, i);
  int first = begin;  // of the steps of a turn
  for (; first < end; first += kSteps) {
    const int here = kUnrolled ? first : begin;  // where `a` and `b` are
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      if (i > 0 && first + i >= end) break;
      cp_async_wait<kStages - 2>();
      __syncthreads();
      fill(here, first - here + i + kStages - 1);
      const T* const stage = reinterpret_cast<const T*>(bytes + (kUnrolled ? i * kStage : used));
      tile.multiply(stage, stage + Tile::TileA::kElements);
      used = next(used);
    }
    if constexpr (kUnrolled) {
      a.move(kSteps);
      b.move(kSteps);
    }
  }
  a.move(kUnrolled ? -first : -begin);
  __syncthreads();
}

// Steps of k that cover `depth`.
template <class Tile>
__host__ __device__ constexpr int tile_steps(int64_t depth) {
  constexpr int kDepth = Tile::TileA::kDepth;
  return static_cast<int>((depth + kDepth - 1) / kDepth);
}

}  // namespace ssc::cuda
