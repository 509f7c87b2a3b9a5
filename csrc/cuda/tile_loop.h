// The main loop of all matmuls: a pipeline of kStages tiles in shared memory, filled by cp.async
// while the ones before are multiplied.
#pragma once

#include "csrc/cuda/operand.h"

namespace ssc::cuda {

constexpr int kStages = 3;

template <class Tile>
constexpr int kStageElements = Tile::TileA::kElements + Tile::TileB::kElements;

// Bytes of dynamic shared memory that multiply_tile needs.
template <class Tile>
constexpr int kPipelineBytes =
    kStages * kStageElements<Tile> * static_cast<int>(sizeof(typename Tile::Element));

// tile += A B over k in [0, depth). All threads of the block take part; afterwards `shared` is free.
// One barrier a step: the stage that is filled next is the one that all threads have left when they
// pass it.
template <class Tile, class CopyA, class CopyB>
__device__ __forceinline__ void multiply_tile(Tile& tile, const CopyA& a, const CopyB& b,
                                              int64_t depth, typename Tile::Element* shared) {
  constexpr int kDepth = Tile::TileA::kDepth;
  const int steps = static_cast<int>((depth + kDepth - 1) / kDepth);
  const auto fill = [&](int step) {
    if (step < steps) {
      auto* stage = shared + step % kStages * kStageElements<Tile>;
      a.copy(step, stage);
      b.copy(step, stage + Tile::TileA::kElements);
    }
    cp_async_commit();  // an empty group at the end keeps the count of those to wait for
  };
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) fill(step);
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    fill(step + kStages - 1);
    const auto* stage = shared + step % kStages * kStageElements<Tile>;
    tile.multiply(stage, stage + Tile::TileA::kElements);
  }
  __syncthreads();
}

}  // namespace ssc::cuda
