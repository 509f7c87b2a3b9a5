// Columns of 16 bits: read as floats, and written with stochastic rounding.
#pragma once

#include "csrc/core/row_update.h"
#include "csrc/cpu/kernels/simd.h"
#include "csrc/cpu/sample/table.h"

namespace ssc::SSC_ISA {

// Columns at a time, which stay in the L1 cache; a multiple of kSumWidth.
constexpr int64_t kChunk = 512;

template <class T, class S>
SSC_INLINE void read(const S* from, int64_t count, T* to) {
  int64_t c = 0;
  for (; c + kLanes<T> <= count; c += kLanes<T>) store<T>(to + c, load_as<T>(from + c));
  for (; c < count; ++c) to[c] = get<T>(from + c);
}

template <class T, class S>
SSC_INLINE void write(const T* from, int64_t count, S* to) {
  int64_t c = 0;
  for (; c + kLanes<T> <= count; c += kLanes<T>) store_as<T>(to + c, load(from + c));
  for (; c < count; ++c) put(to + c, from[c]);
}

typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef uint16_t HalfWords __attribute__((vector_size(kVectorBytes / 2)));
typedef uint16_t LooseHalfWords
    __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));

// The halves of 64 random bits are in the order of columns on a little-endian machine.
SSC_INLINE void write_rounded(const float* from, int64_t count, const uint16_t* random,
                              BFloat16* to) {
  int64_t c = 0;
  for (; c + kLanes<float> <= count; c += kLanes<float>) {
    const HalfWords bits = *reinterpret_cast<const LooseHalfWords*>(random + c);
    const Words rounded =
        round_to_bf16((Words)load(from + c), __builtin_convertvector(bits, Words));
    *reinterpret_cast<LooseHalfWords*>(to + c) = __builtin_convertvector(rounded, HalfWords);
  }
  for (; c < count; ++c) {
    uint32_t bits;
    std::memcpy(&bits, from + c, 4);
    to[c] = {static_cast<uint16_t>(round_to_bf16(bits, uint32_t{random[c]}))};
  }
}

SSC_INLINE void write_rounded(const float* from, int64_t count, const uint16_t* random,
                              Float16* to) {
  for (int64_t c = 0; c < count; ++c) {
    uint32_t bits;
    std::memcpy(&bits, from + c, 4);
    to[c] = {static_cast<uint16_t>(round_to_fp16(bits, random[c]))};
  }
}

// A row's numbers as they are stored, S, and as they are computed with, T.
template <class T, class S>
struct Columns {
  static constexpr bool kDirect = sizeof(S) == sizeof(T);

  // The columns from `at` on, in `buffer` where they must be converted.
  SSC_INLINE T* read_into(S* at, int64_t count, T* buffer) {
    if constexpr (kDirect) {
      return at;
    } else {
      read<T>(at, count, buffer);
      return buffer;
    }
  }
};

struct Random {
  decltype(SampleKernels::philox) philox;
  uint64_t seed;
  int64_t step, row;

  // The bits of columns [begin, begin + count), begin a multiple of 8.
  void fill(RoundedArray array, int64_t begin, int64_t count, uint64_t* bits) const {
    philox(rounding_key(seed, step, row, array), static_cast<uint64_t>(begin / 4), (count + 3) / 4,
           bits);
  }
};

template <class S>
SSC_INLINE void write_stochastically(const float* from, int64_t begin, int64_t count,
                                     const Random& random, RoundedArray array, S* to) {
  uint64_t bits[kChunk / 4];
  random.fill(array, begin, count, bits);
  write_rounded(from, count, reinterpret_cast<const uint16_t*>(bits), to);
}

}  // namespace ssc::SSC_ISA
