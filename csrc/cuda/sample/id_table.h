// Which draw of a stream was the first of its id: a hash table in device memory, by open addressing
// with linear probing, at most three quarters full. For each id it keeps the complement of the
// earliest draw, by atomicMax: whatever the order of the threads, the same result, and zeroed
// memory is an empty table.
#pragma once

#include "csrc/cuda/device/device.h"

namespace ssc::cuda {

struct IdTable {
  using Word = unsigned long long;  // what atomic functions take

  Word* ids;       // [capacity]: 1 + id, 0 where free
  Word* earliest;  // [capacity]: the complement of the id's first draw, 0 where none
  Word mask;       // capacity − 1
  int shift;       // 64 − log2(capacity)

  __device__ __forceinline__ Word slot_of(int64_t id) const {
    const Word key = static_cast<Word>(id) + 1;
    Word slot = (key * 0x9E3779B97F4A7C15u) >> shift;
    while (true) {
      const Word there = atomicCAS(ids + slot, 0, key);
      if (there == 0 || there == key) return slot;
      slot = (slot + 1) & mask;
    }
  }
  // Returns what was there.
  __device__ __forceinline__ Word offer(Word slot, Word draw) const {
    return atomicMax(earliest + slot, ~draw);
  }
  __device__ __forceinline__ bool is_first(Word slot, Word draw) const {
    return __ldcg(earliest + slot) == ~draw;
  }
  // The first draw that was offered; the largest number if none was.
  __device__ __forceinline__ Word first(Word slot) const { return ~__ldcg(earliest + slot); }
};

}  // namespace ssc::cuda
