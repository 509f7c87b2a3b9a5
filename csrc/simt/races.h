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

// The stamp of an access that the thread makes now, to both bytes of a cell.
Stamp stamp_now(const Thread& thread, const void* pc, bool atomic);
// `shared`: another block's accesses are to other memory.
bool ordered_before_now(const Stamp& earlier, const Thread& now, bool shared);
bool same_block(const Stamp& earlier);
// Keeps the reader in the cell: in place of one that is ordered before it, or of one of two of the
// same warp, because a later write that is ordered after one warp may still race with another.
void remember_reader(Cell& cell, const Stamp& reader, const Thread& thread, bool shared);

}  // namespace ssc::simt
