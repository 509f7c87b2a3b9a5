#include "csrc/simt/executor.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "csrc/simt/checks.h"
#include "csrc/simt/report.h"
#include "csrc/simt/runtime.h"
#include "csrc/simt/shared_memory.h"

namespace ssc::simt {

Running running;

namespace {

// Who may run next. Threads that a collective has released go first, so that a warp runs on until
// its next barrier and few stacks are in use.
struct Scheduler {
  std::vector<uint32_t> order;  // in which threads are started
  size_t started = 0;
  std::vector<Thread*> ready;  // the last one is next
  std::minstd_rand random;
};

Scheduler scheduler;
Fiber main_fiber;

void run_threads();
FiberPool& fibers() {
  static FiberPool pool(run_threads);
  return pool;
}

Thread* next_thread() {
  std::vector<Thread*>& ready = scheduler.ready;
  const size_t unstarted = scheduler.order.size() - scheduler.started;
  if (ready.empty() && unstarted == 0) return nullptr;
  bool start = ready.empty();
  if (running.options.schedule == Schedule::shuffled && !ready.empty()) {
    const size_t draw = scheduler.random() % (ready.size() + unstarted);
    start = draw >= ready.size();
    if (!start) std::swap(ready[draw], ready.back());
  }
  if (start) return &running.threads[scheduler.order[scheduler.started++]];
  Thread* thread = ready.back();
  ready.pop_back();
  return thread;
}

// Leaves `from`, whose thread waits or is done, for the next thread or, if there is none, for the
// launching function.
void leave(Fiber& from) {
  Thread* next = next_thread();
  if (next == nullptr) {
    running.current = nullptr;
    switch_fiber(from, main_fiber);
    return;
  }
  running.current = next;
  if (next->state == State::unstarted) {
    next->fiber = fibers().take();
  } else if (next->fiber == &from) {
    return;
  }
  switch_fiber(from, *next->fiber);
}

// A fiber's life: run a thread; when it is done, go on with one that has not started, on the same
// stack, or switch to one that waits.
void run_threads() {
  enter_fiber();
  for (;;) {
    Thread* thread = running.current;
    thread->state = State::ready;
    running.call->run(running.call->arguments);
    thread->state = State::done;
    --running.live;
    note_exit(*thread);
    release_barrier_if_complete();
    Thread* next = next_thread();
    Fiber* own = thread->fiber;
    if (next != nullptr && next->state == State::unstarted) {
      next->fiber = own;
      running.current = next;
      continue;
    }
    running.current = next;
    fibers().give(own);
    switch_fiber(*own, next == nullptr ? main_fiber : *next->fiber);
  }
}

void order_threads() {
  std::vector<uint32_t>& order = scheduler.order;
  order.resize(running.thread_count);
  std::iota(order.begin(), order.end(), 0u);
  if (running.options.schedule == Schedule::descending) std::reverse(order.begin(), order.end());
  if (running.options.schedule == Schedule::shuffled) {
    std::shuffle(order.begin(), order.end(), scheduler.random);
  }
  scheduler.started = 0;
  scheduler.ready.clear();
}

void start_block() {
  const dim3 size = running.block;
  uint32_t linear = 0;
  for (uint32_t z = 0; z < size.z; ++z) {
    for (uint32_t y = 0; y < size.y; ++y) {
      for (uint32_t x = 0; x < size.x; ++x, ++linear) {
        Thread& thread = running.threads[linear];
        thread.index = {x, y, z};
        thread.linear = linear;
        thread.state = State::unstarted;
        thread.fiber = nullptr;
        forget_copies(thread);
      }
    }
  }
  running.live = running.thread_count;
  running.at_barrier = 0;
  running.exited.fill(0);
  order_threads();
  poison_shared_memory(running.shared_bytes);
  checks_start_block();
}

// Runs the block whose index is set; false if the launch must end.
bool run_block() {
  start_block();
  Thread* first = next_thread();
  first->fiber = fibers().take();
  running.current = first;
  switch_fiber(main_fiber, *first->fiber);
  if (!running.aborted && running.live > 0) {
    report_deadlock();
    running.aborted = true;
  }
  if (!running.aborted) {
    check_shared_guards();
    checks_end_block();
  } else {
    fibers().take_back_all();
  }
  return !running.aborted;
}

void run_grid() {
  const uint64_t count = uint64_t{running.grid.x} * running.grid.y * running.grid.z;
  std::vector<uint32_t> order;
  if (running.options.schedule == Schedule::shuffled) {
    order.resize(count);
    std::iota(order.begin(), order.end(), 0u);
    std::shuffle(order.begin(), order.end(), scheduler.random);
  }
  for (uint64_t i = 0; i < count; ++i) {
    uint64_t b = i;
    if (running.options.schedule == Schedule::descending) b = count - 1 - i;
    if (!order.empty()) b = order[i];
    running.block_linear = static_cast<uint32_t>(b);
    running.block_index = {static_cast<uint32_t>(b % running.grid.x),
                           static_cast<uint32_t>(b / running.grid.x % running.grid.y),
                           static_cast<uint32_t>(b / running.grid.x / running.grid.y)};
    if (!run_block()) return;
  }
}

}  // namespace

void make_ready(Thread& thread) {
  thread.state = State::ready;
  scheduler.ready.push_back(&thread);
}

void wait_as(State state) {
  Thread* thread = running.current;
  thread->state = state;
  leave(*thread->fiber);
}

bool on_fiber(const void* address) { return fibers().owns(address); }

void abort_launch() {
  running.aborted = true;
  Thread* thread = running.current;
  running.current = nullptr;
  switch_fiber(*thread->fiber, main_fiber);
  __builtin_unreachable();
}

cudaError_t launch(const Call& call, dim3 grid, dim3 block, size_t shared_bytes) {
  const cudaError_t refused = check_configuration(call, grid, block, shared_bytes);
  if (refused != cudaSuccess) return set_last_error(refused);
  const size_t findings_before = finding_count();
  running.call = &call;
  running.grid = grid;
  running.block = block;
  running.shared_bytes = shared_bytes;
  running.thread_count = block.x * block.y * block.z;
  if (running.threads.size() < running.thread_count) running.threads.resize(kMaxThreads);
  running.aborted = false;
  ++running.launch_number;
  scheduler.random.seed(static_cast<uint32_t>(running.options.seed * 2654435761u + 1));
  checks_start_launch();
  run_grid();
  checks_end_launch();
  running.call = nullptr;
  running.current = nullptr;
  const bool clean = finding_count() == findings_before;
  return set_last_error(clean ? cudaSuccess : cudaErrorLaunchFailure);
}

uint3 thread_index() noexcept { return running.current->index; }
uint3 block_index() noexcept { return running.block_index; }
dim3 block_size() noexcept { return running.block; }
dim3 grid_size() noexcept { return running.grid; }
uint32_t warp_lanes() { return existing_lanes(running.current->warp()); }

}  // namespace ssc::simt
