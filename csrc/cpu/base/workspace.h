// Scratch memory that is kept from call to call. A training step asks for the same megabytes every
// time; fresh pages would cost a fault each, and 4 KiB pages more TLB misses than the panels allow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ssc {

// A bump allocator over blocks taken from a process-wide cache. Not for sharing between threads;
// any number of instances may live at once. Memory comes uninitialised, aligned to 64 bytes.
class Workspace {
 public:
  Workspace() = default;
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  template <class T>
  T* take(int64_t count) {
    return static_cast<T*>(take_bytes(static_cast<size_t>(count) * sizeof(T)));
  }

  struct Block {
    char* data;
    size_t size;
  };

 private:
  void* take_bytes(size_t bytes);

  std::vector<Block> blocks_;  // the last one is being filled
  size_t used_ = 0;            // of the last one
};

}  // namespace ssc
