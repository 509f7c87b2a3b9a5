// Counts what each warp instruction's accesses cost. An instruction is a return address in the
// kernel and the how-manieth visit of it: the k-th access of each lane since the lanes of the warp
// last met (at a barrier or a collective of them all) is one instruction.
#pragma once

#include "csrc/simt/checks.h"

namespace ssc::simt {

void statistics_start_launch();
void statistics_start_block();
// An access of the running thread. `origin` is where banks are counted from.
void count_access(const void* pc, bool shared, Access access, uintptr_t address, uintptr_t origin,
                  uint32_t bytes);
// One row of the running lane, of the ldmatrix at pc.
void count_matrix_row(const void* pc, uintptr_t address, uintptr_t origin);
void statistics_flush();  // all warps of the block
void statistics_flush_warp(uint32_t warp);

}  // namespace ssc::simt
