// Which accesses are ordered. Two accesses to a byte, one of them a write and not both atomic, race
// unless the earlier one is ordered before the later one:
//
//   same thread; an older launch; the same block in an older epoch (a barrier lies between);
//   the same warp, and __syncwarps with both lanes in their masks lie between (vector clocks);
//   another block, and it has published the access: access, __threadfence, atomic on a variable
//   that the later thread's block has seen by an atomic of its own. Barriers and __syncwarp carry
//   both halves to other threads of the blocks.
#pragma once

#include "csrc/simt/executor.h"
#include "csrc/simt/shadow.h"

namespace ssc::simt {

void races_start_launch();
void races_start_block();
void races_barrier();
void races_sync_warp(Thread* lanes, uint32_t mask);
void races_fence(const Thread& thread);
void races_atomic(const Thread& thread, uintptr_t address);

// The current epoch, and the first ones of the launch and of the block.
struct Epochs {
  uint32_t now = 0, launch = 0, block = 0;
};
extern Epochs epochs;

// The stamp of an access that the thread makes now, to both bytes of a cell.
Stamp stamp_now(const Thread& thread, const void* pc, bool atomic);
// For accesses of this epoch by other threads of the warp, and of this launch by other blocks.
bool ordered_by_sync_or_fence(const Stamp& earlier, const Thread& now, bool shared);
inline bool same_block(const Stamp& earlier) { return earlier.epoch >= epochs.block; }

// `shared`: another block's accesses are to other memory.
inline bool ordered_before_now(const Stamp& earlier, const Thread& now, bool shared) {
  if (earlier.epoch < epochs.launch) return true;
  if (same_block(earlier)) {
    if (earlier.epoch < epochs.now || earlier.thread == now.linear) return true;
    if (earlier.thread / kWarp != now.warp()) return false;
  }
  return ordered_by_sync_or_fence(earlier, now, shared);
}
// Keeps the reader in the cell: in place of one that is ordered before it, or of one of two of the
// same warp, because a later write that is ordered after one warp may still race with another.
inline void remember_reader(Cell& cell, const Stamp& reader, const Thread& thread, bool shared) {
  for (Stamp& known : cell.readers) {
    const bool covered = (known.bytes & ~reader.bytes) == 0;
    if (known.epoch == 0 || (covered && ordered_before_now(known, thread, shared))) {
      known = reader;
      return;
    }
  }
  const auto warp = [](const Stamp& s) { return s.thread / kWarp; };
  const Stamp& first = cell.readers[0];
  Stamp& second = cell.readers[1];
  if (first.epoch == second.epoch && warp(first) == warp(second) && warp(first) != warp(reader)) {
    second = reader;
  }
}

}  // namespace ssc::simt
