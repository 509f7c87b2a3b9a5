// The executor's own view of a launch: threads, warps, the block that runs, the options. Kernels
// don't include this. One OS thread at a time may launch; blocks run one after another.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "csrc/simt/fiber.h"
#include "csrc/simt/launch.h"
#include "csrc/simt/mma.h"
#include "csrc/simt/warp.h"

namespace ssc::simt {

constexpr uint32_t kWarp = 32, kMaxThreads = 1024;

enum class Schedule : uint8_t { ascending, descending, shuffled };

struct Options {
  Schedule schedule = Schedule::ascending;
  uint64_t seed = 0;             // of the shuffled schedule
  bool strict_exit = true;       // an exited thread at a barrier or in a mask is an error
  size_t shared_limit = 232448;  // shared memory that a block may have: 227 KiB
  bool races = true, bounds = true, initialised = true;  // of the checked build
  bool statistics = false;                               // of the checked build
  uint32_t max_findings = 16;
};

enum class State : uint8_t { unstarted, ready, warp_wait, barrier_wait, done };

// A copy that cp.async has issued and no wait has completed.
struct PendingCopy {
  std::byte* shared;
  alignas(16) std::byte data[16];
  uint8_t bytes;
};

struct Thread {
  uint3 index;
  uint32_t linear;  // in the block
  State state;
  Vote vote;
  bool predicate;
  Exchange exchange;
  uint64_t result;
  const Site* site;  // where it waits
  const void* pc;
  Fiber* fiber;
  std::vector<PendingCopy> copies;
  std::vector<uint32_t> groups;  // for each committed group, the end of its copies

  uint32_t lane() const { return linear % kWarp; }
  uint32_t warp() const { return linear / kWarp; }
};

// The call that is being run. `current` is null outside of kernels.
struct Running {
  Options options;
  const Call* call = nullptr;
  dim3 grid, block;
  uint3 block_index{};
  uint32_t block_linear = 0;
  uint32_t launch_number = 0;
  size_t shared_bytes = 0;
  std::vector<Thread> threads;  // of the block
  uint32_t thread_count = 0;
  Thread* current = nullptr;
  uint32_t live = 0, at_barrier = 0;
  std::array<uint32_t, kMaxThreads / kWarp> exited{};  // lanes of each warp
  bool aborted = false;
};
extern Running running;

inline uint32_t warp_size(uint32_t warp) {
  const uint32_t first = warp * kWarp;
  return running.thread_count - first < kWarp ? running.thread_count - first : kWarp;
}
inline uint32_t existing_lanes(uint32_t warp) {
  return static_cast<uint32_t>((uint64_t{1} << warp_size(warp)) - 1);
}
inline Thread* warp_threads(uint32_t warp) { return running.threads.data() + warp * kWarp; }

// --- executor.cpp: the scheduler ---
void wait_as(State state);  // the current thread blocks; returns when it is made ready
void make_ready(Thread& thread);
bool on_fiber(const void* address);  // is it on a thread's stack?
[[noreturn]] void abort_launch();    // leaves the current thread's fiber for good

// --- collective.cpp ---
void report_deadlock();
void release_barrier_if_complete();
void note_exit(const Thread& exited);
// As collective(), with the place of the call in the kernel.
uint64_t collective_at(const Site* site, const Exchange& exchange, const void* pc);

// --- tensor_core.cpp: what the last lane does for all. `lanes` are the 32 lanes of the warp. ---
void combine_ldmatrix(Thread* lanes);
void combine_mma(Thread* lanes);

// --- async_copy.cpp ---
void forget_copies(Thread& thread);

}  // namespace ssc::simt
