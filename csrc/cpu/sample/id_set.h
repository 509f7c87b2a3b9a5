// The ids that one sample has seen so far, and those that it must not have.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

namespace ssc {

// By open addressing; a quarter full at most, since whether a draw is new can't be predicted and a
// longer search would cost a second mispredicted branch.
class IdSet {
 public:
  enum class Found { nothing, id, excluded };

  explicit IdSet(int64_t max_ids)
      : slots_(std::bit_ceil(4 * static_cast<size_t>(std::max<int64_t>(max_ids, 1)))),
        shift_(64 - std::countr_zero(slots_.size())) {}

  void clear() { std::fill(slots_.begin(), slots_.end(), 0); }

  // Both return the earlier entry of the id.
  Found insert(int64_t id) { return insert_as(static_cast<uint64_t>(id) + 1); }
  Found exclude(int64_t id) { return insert_as((static_cast<uint64_t>(id) + 1) | kExcluded); }

  bool excludes(int64_t id) const {
    const uint64_t key = static_cast<uint64_t>(id) + 1;
    return slots_[slot_of(key)] == (key | kExcluded);
  }

 private:
  static constexpr uint64_t kExcluded = uint64_t{1} << 63;

  // The slot of a key, or the empty one where it belongs.
  size_t slot_of(uint64_t key) const {
    size_t slot = (key * 0x9E3779B97F4A7C15u) >> shift_;
    while (slots_[slot] != 0 && (slots_[slot] & ~kExcluded) != key) {
      slot = (slot + 1) & (slots_.size() - 1);
    }
    return slot;
  }

  Found insert_as(uint64_t entry) {
    uint64_t& slot = slots_[slot_of(entry & ~kExcluded)];
    if (slot != 0) return (slot & kExcluded) != 0 ? Found::excluded : Found::id;
    slot = entry;
    return Found::nothing;
  }

  std::vector<uint64_t> slots_;  // 0: empty, else 1 + id, and whether it is excluded
  int shift_;
};

}  // namespace ssc
