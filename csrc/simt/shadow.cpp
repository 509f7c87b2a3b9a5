#include "csrc/simt/shadow.h"

#include <sys/mman.h>

#include <cstring>
#include <new>

namespace ssc::simt {
namespace {

void* zero_pages(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return memory;
}

// One cell more than there are pairs: a range may start or end in the middle of one.
size_t cell_bytes(size_t bytes) { return (bytes / 2 + 2) * sizeof(Cell); }

}  // namespace

Shadow::Shadow(size_t bytes)
    : bytes_(bytes + 2),
      cells_(static_cast<Cell*>(zero_pages(cell_bytes(bytes)))),
      states_(static_cast<uint8_t*>(zero_pages(bytes + 2))) {}

Shadow::~Shadow() {
  munmap(cells_, cell_bytes(bytes_ - 2));
  munmap(states_, bytes_);
}

void Shadow::set_states(size_t offset, size_t count, ByteState state) {
  std::memset(states_ + offset, state, count);
}

}  // namespace ssc::simt
