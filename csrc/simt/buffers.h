// The memory that kernels may touch, as the caller has declared it. Only the checked build looks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ssc::simt {

struct Buffer {
  std::string name;
  uintptr_t start, bytes;
  bool writable;
  bool initialised;  // at first; what kernels write becomes so
};

// Declares a buffer; overlapping an earlier one, it replaces it.
void add_buffer(Buffer buffer);
void clear_buffers();
const std::vector<Buffer>& buffers();  // ordered by address
const Buffer* find_buffer(uintptr_t address);
// The buffer that is nearest to an address that is in none; null if there are none.
const Buffer* nearest_buffer(uintptr_t address);

}  // namespace ssc::simt
