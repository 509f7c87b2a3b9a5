// Fibers: stacks that one OS thread switches between. A kernel's thread is a function call on a
// fiber; most threads of a kernel without barriers share one.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace ssc::simt {

struct Fiber {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  std::byte* stack = nullptr;  // lowest address; null for the OS thread's own stack
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's, while the fiber is switched away from
};

// Stacks in one mapping, each with an unmapped page below it.
class FiberPool {
 public:
  explicit FiberPool(void (*entry)()) : entry_(entry) {}
  ~FiberPool();
  FiberPool(const FiberPool&) = delete;
  FiberPool& operator=(const FiberPool&) = delete;

  Fiber* take();  // will call entry() from the start when it is switched to
  void give(Fiber* fiber) { free_.push_back(fiber); }
  void take_back_all();  // also those that were left in the middle of a kernel
  bool owns(const void* address) const {
    const auto* byte = static_cast<const std::byte*>(address);
    return byte >= memory_ && byte < memory_ + memory_bytes_;
  }

 private:
  void reserve();

  void (*entry_)();
  std::byte* memory_ = nullptr;
  size_t memory_bytes_ = 0;
  std::vector<Fiber> fibers_;
  std::vector<Fiber*> free_;
};

// Saves the running fiber in `from`, goes on with `to`; returns when somebody switches back.
void switch_fiber(Fiber& from, Fiber& to);
// To be called first by a fiber's entry function.
void enter_fiber();

}  // namespace ssc::simt
