// Proposals as kernel parameters, and their draws: the arithmetic is csrc/core's, one number at a
// time.
#pragma once

#include <cstdint>

#include "csrc/core/alias_table.h"
#include "csrc/core/log_uniform.h"
#include "csrc/core/logit_correction.h"
#include "csrc/core/philox.h"
#include "csrc/core/uniform.h"
#include "csrc/cuda/device/device.h"

// M(type); for each kind of proposal.
#define SSC_FOR_PROPOSALS(M) \
  M(UniformProposal);        \
  M(LogUniformProposal);     \
  M(WeightedProposal)

namespace ssc::cuda {

// draw: the class that 64 random bits choose; −1 where a table that is no alias table has none, an
// id that nothing follows. probability: that of a class, kNoClass for an id outside [0,
// num_classes).
struct UniformProposal {
  uint64_t num_classes;

  __device__ __forceinline__ int64_t draw(uint64_t bits) const {
    return static_cast<int64_t>(uniform_id<ScalarLane, false>(bits, num_classes));
  }
  __device__ __forceinline__ double probability(int64_t id) const {
    const bool valid = static_cast<uint64_t>(id) < num_classes;
    return valid ? 1.0 / static_cast<double>(num_classes) : kNoClass;
  }
};

struct LogUniformProposal {
  LogUniform parameters;
  double exp2_table[16];  // kExp2Table: kernels index it, so it has to be in their memory

  __device__ __forceinline__ int64_t draw(uint64_t bits) const {
    return static_cast<int64_t>(log_uniform_id<ScalarLane>(bits, parameters, exp2_table));
  }
  __device__ __forceinline__ double probability(int64_t id) const {
    return log_uniform_probability<ScalarLane>(static_cast<uint64_t>(id), parameters);
  }
};

struct WeightedProposal {
  AliasTable table;             // entries in device memory
  const double* probabilities;  // [num_classes] in device memory

  __device__ __forceinline__ int64_t draw(uint64_t bits) const {
    const uint64_t id = alias_id<ScalarLane, false>(bits, table);
    return id < table.num_classes ? static_cast<int64_t>(id) : -1;
  }
  __device__ __forceinline__ double probability(int64_t id) const {
    return static_cast<uint64_t>(id) < table.num_classes ? probabilities[id] : kNoClass;
  }
};

__host__ __device__ inline uint64_t num_classes(const UniformProposal& p) { return p.num_classes; }
__host__ __device__ inline uint64_t num_classes(const LogUniformProposal& p) {
  return p.parameters.num_classes;
}
__host__ __device__ inline uint64_t num_classes(const WeightedProposal& p) {
  return p.table.num_classes;
}

// key: int64[2] in device memory.
__device__ __forceinline__ PhiloxKey load_key(const int64_t* key) {
  return {static_cast<uint64_t>(key[0]), static_cast<uint64_t>(key[1])};
}

// Draws 2 · pair and the one after it: what one Philox block gives.
struct __align__(16) TwoBits {
  uint64_t first, second;
};
__device__ __forceinline__ TwoBits two_bits(const PhiloxKey& key, uint64_t pair) {
  const uint64_t counter = key.offset + pair;
  const PhiloxWords<uint64_t> w =
      philox4x32_10<ScalarLane>(philox_counter<ScalarLane>(counter, key.subsequence), key.seed);
  return {join_words<ScalarLane>(w.w0, w.w1), join_words<ScalarLane>(w.w2, w.w3)};
}

struct __align__(16) TwoIds {
  int64_t first, second;
};
template <class Proposal>
__device__ __forceinline__ TwoIds two_draws(const Proposal& proposal, const PhiloxKey& key,
                                            uint64_t pair) {
  const TwoBits bits = two_bits(key, pair);
  return {proposal.draw(bits.first), proposal.draw(bits.second)};
}

}  // namespace ssc::cuda
