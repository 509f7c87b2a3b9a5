// The random bits of rounding_key, 16 for each column of a lane, by few instructions: they are a
// third of those of a row.
#pragma once

#include "csrc/core/row_update.h"
#include "csrc/cuda/device/columns.h"

namespace ssc::cuda {

// The keys of Philox's rounds. They are the same for a whole launch: what a kernel has as a
// parameter is an operand of an instruction and takes neither registers nor additions.
struct RoundKeys {
  uint32_t first[kPhiloxRounds], second[kPhiloxRounds];
};

inline RoundKeys round_keys(uint64_t seed) {
  RoundKeys keys;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    keys.first[round] = philox_round_key0(seed, round);
    keys.second[round] = philox_round_key1(seed, round);
  }
  return keys;
}

// philox4x32_10 in words of 32 bits.
__device__ __forceinline__ PhiloxWords<uint32_t> philox_words(PhiloxWords<uint32_t> c,
                                                              const RoundKeys& keys) {
  constexpr auto kMul0 = static_cast<uint32_t>(kPhiloxMul0);
  constexpr auto kMul1 = static_cast<uint32_t>(kPhiloxMul1);
#pragma unroll
  for (int round = 0; round < kPhiloxRounds; ++round) {
    c = {__umulhi(kMul1, c.w2) ^ c.w1 ^ keys.first[round], kMul1 * c.w2,
         __umulhi(kMul0, c.w0) ^ c.w3 ^ keys.second[round], kMul0 * c.w0};
  }
  return c;
}

// Bits of a lane's columns in an array: column k has half k.
using ColumnBits = uint2;

// Neighbouring lanes have the two draws of one counter. Each computes one of two counters that both
// need, and they swap: of the even lane's and of the odd lane's.
struct TwoDraws {
  ColumnBits of_even, of_odd;
};

class RowDraws {
 public:
  __device__ __forceinline__ RowDraws(const RoundKeys& keys, int64_t step, int64_t row)
      : keys_(keys),
        key_(rounding_key(0, step, row, RoundedArray::param)),
        odd_(threadIdx.x % 2 != 0) {}

  // Where the draws for columns [c, c + 4) of an array are.
  __device__ __forceinline__ static unsigned place(RoundedArray array, int c) {
    return static_cast<unsigned>(rounding_key(0, 0, 0, array).offset) +
           static_cast<unsigned>(c) / (2 * kColumns);
  }

  // For whole warps: even lanes compute one place, odd ones the other.
  __device__ __forceinline__ TwoDraws draw(unsigned even, unsigned odd) const {
    const uint64_t counter = key_.offset + (odd_ ? odd : even);
    const PhiloxWords<uint32_t> w = philox_words(
        {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32),
         static_cast<uint32_t>(key_.subsequence), static_cast<uint32_t>(key_.subsequence >> 32)},
        keys_);
    const uint2 others = odd_ ? uint2{w.w0, w.w1} : uint2{w.w2, w.w3};
    const uint2 swapped = {__shfl_xor_sync(~0u, others.x, 1), __shfl_xor_sync(~0u, others.y, 1)};
    return odd_ ? TwoDraws{swapped, {w.w2, w.w3}} : TwoDraws{{w.w0, w.w1}, swapped};
  }

 private:
  const RoundKeys& keys_;
  PhiloxKey key_;
  bool odd_;
};

// The draws of one array, each second turn those of two; without kKeeps, which takes registers,
// those of each turn.
template <bool kKeeps>
class KeptBits {
 public:
  __device__ __forceinline__ ColumnBits draw(const RowDraws& draws, RoundedArray array, int c) {
    if (!kKeeps) return draws.draw(draws.place(array, c), draws.place(array, c)).of_even;
    kept_ = !kept_;
    if (!kept_) return next_;
    const TwoDraws two = draws.draw(draws.place(array, c), draws.place(array, c + kSumWidth));
    next_ = two.of_odd;
    return two.of_even;
  }

 private:
  ColumnBits next_ = {};
  bool kept_ = false;
};

}  // namespace ssc::cuda
