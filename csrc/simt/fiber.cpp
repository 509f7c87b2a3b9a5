#include "csrc/simt/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if defined(SSC_SIMT_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace ssc::simt {
namespace {

constexpr size_t kMaxFibers = 1025;  // a block of 1024 and one to go on with
#if defined(SSC_SIMT_ASAN)
constexpr size_t kStackBytes = 256 * 1024;  // red zones around every local
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

}  // namespace

// --- the switch
// -----------------------------------------------------------------------------------
#if defined(__x86_64__)
// Pushes what the System V ABI asks a function to preserve, swaps stacks, pops: 9 ns, where
// swapcontext's system call for the signal mask takes 200. The floating-point control words are the
// same on all fibers. At a fiber's start the `ret` goes to its entry function.
extern "C" void ssc_simt_switch(void** from, void* to);
asm(R"(
.text
.globl ssc_simt_switch
.hidden ssc_simt_switch
.type ssc_simt_switch, @function
ssc_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size ssc_simt_switch, .-ssc_simt_switch
)");

static void prepare(Fiber& fiber, void (*entry)()) {
  // From the top: a null return address for entry(), which never returns; entry; six registers.
  // At entry the stack pointer is 8 below a multiple of 16, as after a call.
  auto* top = reinterpret_cast<uint64_t*>(fiber.stack + fiber.stack_bytes) - 1;
  top[0] = 0;
  top[-1] = reinterpret_cast<uint64_t>(entry);
  for (int i = 2; i <= 7; ++i) top[-i] = 0;
  fiber.stack_pointer = top - 7;
}
#else
static void prepare(Fiber& fiber, void (*entry)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = fiber.stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}
#endif

#if defined(SSC_SIMT_ASAN)
namespace {
Fiber* leaving = nullptr;
}
void enter_fiber() {
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (leaving->stack == nullptr) {  // the OS thread's stack, whose extent we learn on leaving it
    leaving->stack = static_cast<std::byte*>(const_cast<void*>(bottom));
    leaving->stack_bytes = bytes;
  }
}
#else
void enter_fiber() {}
#endif

void switch_fiber(Fiber& from, Fiber& to) {
#if defined(SSC_SIMT_ASAN)
  leaving = &from;
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
#endif
#if defined(__x86_64__)
  ssc_simt_switch(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
#if defined(SSC_SIMT_ASAN)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// --- the stacks
// -----------------------------------------------------------------------------------
void FiberPool::reserve() {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t stride = kStackBytes + page;
  memory_bytes_ = stride * kMaxFibers;
  void* memory =
      mmap(nullptr, memory_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<std::byte*>(memory);
  fibers_.resize(kMaxFibers);
  for (size_t i = 0; i < kMaxFibers; ++i) {
    std::byte* stack = memory_ + i * stride + page;
    if (mprotect(stack, kStackBytes, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    fibers_[i].stack = stack;
    fibers_[i].stack_bytes = kStackBytes;
  }
  take_back_all();
}

FiberPool::~FiberPool() {
  if (memory_ != nullptr) munmap(memory_, memory_bytes_);
}

void FiberPool::take_back_all() {
  free_.clear();
  for (size_t i = fibers_.size(); i-- > 0;) free_.push_back(&fibers_[i]);
}

Fiber* FiberPool::take() {
  if (fibers_.empty()) reserve();
  Fiber* fiber = free_.back();
  free_.pop_back();
#if defined(SSC_SIMT_ASAN)
  __asan_unpoison_memory_region(fiber->stack, fiber->stack_bytes);
  fiber->fake_stack = nullptr;
#endif
  prepare(*fiber, entry_);
  return fiber;
}

}  // namespace ssc::simt
