// The logsumexp of a thread's own logits of each of its rows, over the tiles of a block; the lanes
// and warps that share a row merge theirs once, at the end, not in every tile.
#pragma once

#include "csrc/core/online_lse.h"
#include "csrc/cuda/device/number.h"

namespace ssc::cuda {

// The largest of a value over the lanes of the tile that share a row; and the sum.
template <class Tile, class A>
__device__ __forceinline__ A row_max(A value) {
#pragma unroll
  for (int offset = Tile::kLanesPerRow / 2; offset > 0; offset /= 2) {
    value = larger(value, __shfl_xor_sync(~0u, value, offset));
  }
  return value;
}
template <class Tile, class A>
__device__ __forceinline__ A row_sum(A value) {
#pragma unroll
  for (int offset = Tile::kLanesPerRow / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(~0u, value, offset);
  }
  return value;
}

// e^(z − r) for many z. Of floats as 2^(z log2 e − r log2 e), by one multiply-add: r that are so
// large that r log2 e is none give 0. At least kLowest, so that −inf is not subtracted from itself.
template <class A>
class ExpFrom;
template <>
class ExpFrom<float> {
 public:
  __device__ __forceinline__ explicit ExpFrom(float r) : minus_(-kLog2E * larger(r, kLowest)) {}
  __device__ __forceinline__ float operator()(float z) const {
    return fast_exp2(fmaf(z, kLog2E, minus_));
  }

 private:
  static constexpr float kLowest = -1e38f;
  float minus_;
};
template <>
class ExpFrom<double> {
 public:
  __device__ __forceinline__ explicit ExpFrom(double r) : r_(larger(r, kLowest)) {}
  __device__ __forceinline__ double operator()(double z) const { return exp(z - r_); }

 private:
  static constexpr double kLowest = -1e308;
  double r_;
};

template <class Tile>
struct RunningLse {
  using A = typename Tile::Accumulator;

  A max[Tile::kRows], sum[Tile::kRows];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < Tile::kRows; ++i) {
      max[i] = empty_lse<A>().max;
      sum[i] = A(0);
    }
  }

  // The thread's logits of its row i in a tile. NaN is not the largest of any, but makes the sum
  // NaN.
  __device__ __forceinline__ void add(Tile& tile, int i) {
    A largest = max[i];
#pragma unroll
    for (int j = 0; j < Tile::kColumns; ++j) largest = larger(largest, tile.at(i, j));
    const ExpFrom<A> exponential(largest);
    A total = sum[i] * exponential(max[i]);
#pragma unroll
    for (int j = 0; j < Tile::kColumns; ++j) total += exponential(tile.at(i, j));
    max[i] = largest;
    sum[i] = total;
  }

  // Row i's over the lanes that share it, for all of them. The sum has the largest's own term, 1,
  // and is 0 only if that is none, or too large for ExpFrom: then the others are as good as 0.
  __device__ __forceinline__ OnlineLse<A> over_lanes(int i) const {
    const A own = sum[i] == A(0) && max[i] > empty_lse<A>().max ? A(1) : sum[i];
    const A largest = row_max<Tile>(max[i]);
    return {largest, row_sum<Tile>(own * sum_exp(max[i] - lse_reference(largest)))};
  }
};

}  // namespace ssc::cuda
