// Compiled once per instruction set, with -ffp-contract=off (see sample/table.h, kernels/lane.h).
#include "csrc/cpu/kernels/lane.h"
#include "csrc/cpu/sample/table.h"

namespace ssc::SSC_ISA {
namespace {

using U = Lane::U;
using F = Lane::F;
constexpr int kWidth = Lane::kWidth;

SSC_INLINE U load_lane(const uint64_t* p) { return Lane::load_bits(p); }
SSC_INLINE U load_lane(const int64_t* p) { return Lane::load_bits(p); }
SSC_INLINE F load_lane(const double* p) { return Lane::load_float(p); }

// out[i] = f(in[i]...), vectors at a time; the rest goes through a vector padded with zeros, for
// which f must be defined too.
template <class Fn, class Out, class... In>
SSC_INLINE void map(Fn f, int64_t n, Out* out, const In*... in) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) Lane::put_number(out + i, f(load_lane(in + i)...));
  if (i == n) return;
  const auto padded = [&]<class T>(const T* p) {
    T buffer[kWidth] = {};
    for (int64_t j = i; j < n; ++j) buffer[j - i] = p[j];
    return load_lane(buffer);
  };
  Out buffer[kWidth];
  Lane::put_number(buffer, f(padded(in)...));
  for (int64_t j = i; j < n; ++j) out[j] = buffer[j - i];
}

// kPhiloxChains independent blocks in step, 2 kWidth draws each.
SSC_INLINE void philox_blocks(PhiloxKey key, uint64_t counter, uint64_t* bits) {
  PhiloxWords<U> words[kPhiloxChains];
  for (int chain = 0; chain < kPhiloxChains; ++chain) {
    const U c = Lane::splat(counter + static_cast<uint64_t>(chain) * kWidth) + Lane::iota();
    words[chain] = philox_counter<Lane>(c, key.subsequence);
  }
#pragma GCC unroll 10
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint32_t k0 = philox_round_key0(key.seed, round);
    const uint32_t k1 = philox_round_key1(key.seed, round);
#pragma GCC unroll 4
    for (int chain = 0; chain < kPhiloxChains; ++chain) {
      words[chain] = philox_round<Lane>(words[chain], k0, k1);
    }
  }
  for (int chain = 0; chain < kPhiloxChains; ++chain) {
    const PhiloxWords<U>& w = words[chain];
    Lane::store_interleaved(bits + chain * 2 * kWidth, join_words<Lane>(w.w0, w.w1),
                            join_words<Lane>(w.w2, w.w3));
  }
}

void philox(PhiloxKey key, uint64_t first, int64_t n, uint64_t* bits) {
  constexpr int kBlock = 2 * kWidth * kPhiloxChains;
  uint64_t counter = key.offset + first / 2;
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock, counter += kBlock / 2) {
    philox_blocks(key, counter, bits + i);
  }
  if (i == n) return;
  uint64_t rest[kBlock];
  philox_blocks(key, counter, rest);
  for (int64_t j = i; j < n; ++j) bits[j] = rest[j - i];
}

void uniform(const uint64_t* bits, int64_t n, uint64_t num_classes, int64_t* ids) {
  if (num_classes <= kLow32) {
    map([=](U x) { return uniform_id<Lane, true>(x, num_classes); }, n, ids, bits);
  } else {
    map([=](U x) { return uniform_id<Lane, false>(x, num_classes); }, n, ids, bits);
  }
}

void log_uniform(const uint64_t* bits, int64_t n, const LogUniform& proposal, int64_t* ids) {
  const LogUniform p = proposal;
  map([=](U x) { return log_uniform_id<Lane>(x, p, kExp2Table); }, n, ids, bits);
}

// An id is below 2^63, so the difference to the last class is negative if it is none: one
// subtraction for each id, and all signs at once.
template <bool kNarrow>
SSC_INLINE bool alias_ids(const uint64_t* bits, int64_t n, const AliasTable& table, int64_t* ids) {
  const AliasTable t = table;
  const U last = Lane::splat(t.num_classes - 1);
  U beyond = Lane::splat(uint64_t{0});
  const auto draw = [&](U x) {
    const U id = alias_id<Lane, kNarrow>(x, t);
    beyond |= last - id;
    return id;
  };
  map(draw, n, ids, bits);
  int64_t signs[kWidth];
  Lane::put_number(signs, beyond);
  int64_t any = 0;
  for (const int64_t sign : signs) any |= sign;
  return any >= 0;
}

bool alias(const uint64_t* bits, int64_t n, const AliasTable& table, int64_t* ids) {
  return table.num_classes <= kLow32 ? alias_ids<true>(bits, n, table, ids)
                                     : alias_ids<false>(bits, n, table, ids);
}

void log_uniform_probability_of(const int64_t* ids, int64_t n, const LogUniform& proposal,
                                double* q) {
  const LogUniform p = proposal;
  map([=](U id) { return log_uniform_probability<Lane>(id, p); }, n, q, ids);
}

void log_expected_count_of(const double* q, int64_t n, const LogCount& count, float* out) {
  const LogCount c = count;
  map([=](F probability) { return log_expected_count<Lane>(probability, c); }, n, out, q);
}

void arrival_time_of(const uint64_t* bits, const double* q, int64_t n, double* out) {
  map([](U x, F probability) { return arrival_time<Lane>(x, probability); }, n, out, bits, q);
}

}  // namespace

extern const SampleKernels kSampleKernels;
const SampleKernels kSampleKernels = {
    philox,          uniform, log_uniform, alias, log_uniform_probability_of, log_expected_count_of,
    arrival_time_of,
};

}  // namespace ssc::SSC_ISA
