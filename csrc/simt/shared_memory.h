// A block's shared memory: poisoned when the block starts, and its ends watched.
#pragma once

#include <cstddef>

namespace ssc::simt {

constexpr unsigned char kPoison = 0xff;  // NaN as float, half and bfloat16; -1 as an integer

constexpr size_t kMaxDynamicShared = 256 * 1024;

void poison_shared_memory(size_t dynamic_bytes);
// Reports bytes behind dynamic memory or in front of static variables that the block has changed.
void check_shared_guards();

}  // namespace ssc::simt
