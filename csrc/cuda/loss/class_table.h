// A hash table of classes in shared memory, made once by a block and looked up by its threads.
#pragma once

#include <cstdint>

#include "csrc/cuda/device/device.h"

namespace ssc::cuda {

// A slot has the first entry of its class, and further ones are chained to it.
template <int kEntries, int kSlots>
class ClassTable {
 public:
  static_assert(2 * kEntries <= kSlots);

  // Entry i has the class class_of(i); a negative one is nobody's. All kThreads threads of the
  // block take part, and the last barrier makes the table visible.
  template <int kThreads, class ClassOf>
  __device__ __forceinline__ void fill(ClassOf&& class_of) {
    const int thread = static_cast<int>(threadIdx.x);
    for (int i = thread; i < kSlots; i += kThreads) slot_[i] = kNone;
    for (int i = thread; i < kEntries; i += kThreads) {
      class_[i] = class_of(i);
      next_[i] = kNone;
    }
    __syncthreads();
    for (int i = thread; i < kEntries; i += kThreads) {
      if (class_[i] < 0) continue;
      for (unsigned at = first_slot(class_[i]);; at = (at + 1) % kSlots) {
        const int first = atomicCAS(&slot_[at], kNone, i);
        if (first == kNone) break;
        if (class_[first] != class_[i]) continue;
        next_[i] = atomicExch(&next_[first], i);
        break;
      }
    }
    __syncthreads();
  }

  // found(i) for each entry i of the class.
  template <class Found>
  __device__ __forceinline__ void look_up(int64_t id, Found&& found) const {
    for (unsigned at = first_slot(id);; at = (at + 1) % kSlots) {
      int entry = slot_[at];
      if (entry == kNone) return;
      if (class_[entry] != id) continue;
      for (; entry != kNone; entry = next_[entry]) found(entry);
      return;
    }
  }

 private:
  static constexpr int kNone = -1;

  // Multiplicative hashing, Knuth, The Art of Computer Programming 3, 6.4.
  __device__ __forceinline__ static unsigned first_slot(int64_t id) {
    return static_cast<unsigned>(static_cast<uint64_t>(id) * 0x9e3779b97f4a7c15ull >> 32) % kSlots;
  }

  int slot_[kSlots];
  int next_[kEntries];
  int64_t class_[kEntries];
};

}  // namespace ssc::cuda
