// Philox4x32-10: a counter-based generator, so draw i is a pure function of (key, i) on any device
// and for any number of threads. Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011, https://doi.org/10.1145/2063384.2063405 (known-answer vectors: Random123).
//
// One counter gives four 32-bit words w0..w3, that is two draws of 64 bits:
//   draw i = w[2l] | w[2l + 1] << 32   of counter (offset + i / 2, subsequence),  l = i % 2.
// Draws that all rows of a batch share are those of subsequence 0; a row with draws of its own has
// those of subsequence 1 + row, which depend neither on S nor on how many rows there are.
#pragma once

#include "csrc/core/host_device.h"
#include "csrc/core/lane.h"

namespace ssc {

// The contents of an int64[2] key tensor, and which of its 2^64 streams of draws is meant: one draw
// of S samples is a pure function of it.
struct PhiloxKey {
  uint64_t seed, offset;
  uint64_t subsequence = 0;
};

// The stream of one row of a batch.
SSC_HD PhiloxKey row_key(const PhiloxKey& key, int64_t row) {
  return {key.seed, key.offset, static_cast<uint64_t>(row) + 1};
}

// The low 32 bits of each word count; the high ones are left over from the arithmetic.
template <class U>
struct PhiloxWords {
  U w0, w1, w2, w3;
};

constexpr uint64_t kPhiloxMul0 = 0xD2511F53, kPhiloxMul1 = 0xCD9E8D57;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9, kPhiloxWeyl1 = 0xBB67AE85;
constexpr int kPhiloxRounds = 10;

// One round: (w0, w1, w2, w3) <- (hi(M1 w2) ^ w1 ^ k0, lo(M1 w2), hi(M0 w0) ^ w3 ^ k1, lo(M0 w0)).
template <class L>
SSC_HD PhiloxWords<typename L::U> philox_round(PhiloxWords<typename L::U> c, uint32_t k0,
                                               uint32_t k1) {
  const typename L::U p0 = L::mul_low32(L::splat(kPhiloxMul0), c.w0);
  const typename L::U p1 = L::mul_low32(L::splat(kPhiloxMul1), c.w2);
  return {(p1 >> 32) ^ c.w1 ^ uint64_t{k0}, p1, (p0 >> 32) ^ c.w3 ^ uint64_t{k1}, p0};
}

// The round keys are k0 + r Weyl0 and k1 + r Weyl1 (mod 2^32) in round r.
SSC_HD uint32_t philox_round_key0(uint64_t seed, int round) {
  return static_cast<uint32_t>(seed) + static_cast<uint32_t>(round) * kPhiloxWeyl0;
}
SSC_HD uint32_t philox_round_key1(uint64_t seed, int round) {
  return static_cast<uint32_t>(seed >> 32) + static_cast<uint32_t>(round) * kPhiloxWeyl1;
}

template <class L>
SSC_HD PhiloxWords<typename L::U> philox4x32_10(PhiloxWords<typename L::U> counter, uint64_t seed) {
  SSC_UNROLL
  for (int round = 0; round < kPhiloxRounds; ++round) {
    counter =
        philox_round<L>(counter, philox_round_key0(seed, round), philox_round_key1(seed, round));
  }
  return counter;
}

// The words of 64-bit counters in one subsequence.
template <class L>
SSC_HD PhiloxWords<typename L::U> philox_counter(typename L::U counter, uint64_t subsequence) {
  return {counter, counter >> 32, L::splat(subsequence), L::splat(subsequence >> 32)};
}

// Two neighbouring words as 64 bits.
template <class L>
SSC_HD typename L::U join_words(typename L::U low, typename L::U high) {
  return (low & kLow32) | (high << 32);
}

// The 64 random bits of one draw, for whoever needs a single one.
SSC_HD uint64_t philox_draw(PhiloxKey key, uint64_t draw) {
  const uint64_t counter = key.offset + draw / 2;
  const PhiloxWords<uint64_t> w =
      philox4x32_10<ScalarLane>(philox_counter<ScalarLane>(counter, key.subsequence), key.seed);
  return draw % 2 == 0 ? join_words<ScalarLane>(w.w0, w.w1) : join_words<ScalarLane>(w.w2, w.w3);
}

}  // namespace ssc
