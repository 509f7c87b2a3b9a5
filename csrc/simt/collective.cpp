// Warp collectives and barriers: who waits for whom, and what the last to arrive computes.
#include <algorithm>
#include <bit>

#include "csrc/simt/checks.h"
#include "csrc/simt/executor.h"
#include "csrc/simt/report.h"

namespace ssc::simt {
namespace {

bool waits_for(const Thread& thread, const Exchange& exchange) {
  return thread.state == State::warp_wait && thread.exchange.op == exchange.op &&
         thread.exchange.mask == exchange.mask;
}

// Instructions with .aligned: all lanes must execute the very same one.
bool aligned(Op op) { return op == Op::ldmatrix || op == Op::mma; }

// Calls f(lane's thread) for the lanes of the mask.
template <class F>
void for_lanes(Thread* lanes, uint32_t mask, const F& f) {
  for (; mask != 0; mask &= mask - 1) f(lanes[std::countr_zero(mask)]);
}

void check_aligned(Thread* lanes, uint32_t mask) {
  const Thread& first = lanes[std::countr_zero(mask)];
  bool same = mask == kFullWarp;
  for_lanes(lanes, mask, [&](const Thread& thread) { same = same && thread.site == first.site; });
  if (same) return;
  report(Finding::collective, first.pc, op_name(first.exchange.op),
         " must be one instruction that all 32 lanes execute", waiting_threads());
  abort_launch();
}

// PTX ISA, "Data Movement and Conversion Instructions: shfl.sync".
uint32_t shuffle_source(const Thread& thread) {
  const int lane = static_cast<int>(thread.lane()), width = thread.exchange.width;
  const int first = lane & ~(width - 1), end = first + width;
  int source = lane;
  switch (thread.exchange.op) {
    case Op::shuffle:
      return static_cast<uint32_t>(first + (thread.exchange.lane & (width - 1)));
    case Op::shuffle_up:
      source = lane - thread.exchange.lane;
      return static_cast<uint32_t>(source < first ? lane : source);
    case Op::shuffle_down:
      source = lane + thread.exchange.lane;
      return static_cast<uint32_t>(source >= end ? lane : source);
    default:
      source = lane ^ thread.exchange.lane;
      return static_cast<uint32_t>(source >= end ? lane : source);
  }
}

void combine_shuffle(Thread* lanes, uint32_t mask) {
  for_lanes(lanes, mask, [&](Thread& thread) {
    const int width = thread.exchange.width;
    if (width < 1 || width > 32 || !std::has_single_bit(static_cast<unsigned>(width))) {
      report(Finding::collective, thread.pc,
             "shuffle width is not a power of two up to 32: ", width);
      abort_launch();
    }
    const uint32_t source = shuffle_source(thread);
    const uint32_t named = thread.exchange.mask;
    if (source >= kWarp || (named >> source & 1) == 0) {
      report(Finding::collective, thread.pc, thread_name(thread), " shuffles from lane ", source,
             ", which is outside of the mask ", hex(named));
      abort_launch();
    }
    // An exited lane (when they are allowed) gives something undefined.
    thread.result = (mask >> source & 1) != 0 ? lanes[source].exchange.value : ~uint64_t{0};
  });
}

void combine_match(Thread* lanes, uint32_t mask, Op op) {
  for_lanes(lanes, mask, [&](Thread& thread) {
    uint32_t equal = 0;
    for_lanes(lanes, mask, [&](const Thread& other) {
      if (other.exchange.value == thread.exchange.value) equal |= 1u << other.lane();
    });
    thread.result = op == Op::match_any ? equal : (equal == mask ? mask : 0);
  });
}

uint64_t reduce_two(Op op, uint64_t a, uint64_t b) {
  const auto ua = static_cast<uint32_t>(a), ub = static_cast<uint32_t>(b);
  const auto sa = static_cast<int32_t>(ua), sb = static_cast<int32_t>(ub);
  switch (op) {
    case Op::add:
      return ua + ub;
    case Op::min_signed:
      return static_cast<uint32_t>(std::min(sa, sb));
    case Op::max_signed:
      return static_cast<uint32_t>(std::max(sa, sb));
    case Op::min_unsigned:
      return std::min(ua, ub);
    case Op::max_unsigned:
      return std::max(ua, ub);
    case Op::bit_and:
      return ua & ub;
    case Op::bit_or:
      return ua | ub;
    default:
      return ua ^ ub;
  }
}

void combine_vote(Thread* lanes, uint32_t mask, Op op) {
  uint32_t ballot = 0;
  for_lanes(lanes, mask, [&](const Thread& thread) {
    if (thread.exchange.value != 0) ballot |= 1u << thread.lane();
  });
  const uint32_t answer = op == Op::ballot ? ballot : op == Op::any ? ballot != 0 : ballot == mask;
  for_lanes(lanes, mask, [&](Thread& thread) { thread.result = answer; });
}

void combine_reduction(Thread* lanes, uint32_t mask, Op op) {
  uint64_t total = lanes[std::countr_zero(mask)].exchange.value;
  for_lanes(lanes, mask & (mask - 1),
            [&](const Thread& thread) { total = reduce_two(op, total, thread.exchange.value); });
  for_lanes(lanes, mask, [&](Thread& thread) { thread.result = total; });
}

void combine(Thread* lanes, uint32_t mask, Op op) {
  switch (op) {
    case Op::sync:
      return checks_sync_warp(lanes, mask);
    case Op::shuffle:
    case Op::shuffle_up:
    case Op::shuffle_down:
    case Op::shuffle_xor:
      return combine_shuffle(lanes, mask);
    case Op::ballot:
    case Op::any:
    case Op::all:
      return combine_vote(lanes, mask, op);
    case Op::match_any:
    case Op::match_all:
      return combine_match(lanes, mask, op);
    case Op::ldmatrix:
      return combine_ldmatrix(lanes);
    case Op::mma:
      return combine_mma(lanes);
    default:
      return combine_reduction(lanes, mask, op);
  }
}

// The lanes of the mask that exist and have not exited; in strict mode an absent one is an error,
// because what it contributes is undefined.
uint32_t participating(const Thread& thread, uint32_t mask) {
  const uint32_t present = mask & existing_lanes(thread.warp()) & ~running.exited[thread.warp()];
  if (present != mask && running.options.strict_exit) {
    report(Finding::exited, thread.pc, thread_name(thread), " waits at ",
           op_name(thread.exchange.op), " with mask ", hex(mask), ", but lanes ",
           hex(mask & ~present), " have exited or don't exist", waiting_threads());
    abort_launch();
  }
  return present;
}

// If all lanes that the waiting thread names wait for the same: computes, and makes them ready, all
// but the running thread, which goes on by itself.
bool complete_group(Thread& thread) {
  Thread* lanes = warp_threads(thread.warp());
  const uint32_t present = participating(thread, thread.exchange.mask);
  // From the next lane on: in ascending order it is the one that is missing.
  for (uint32_t i = 1; i < kWarp; ++i) {
    const uint32_t lane = (thread.lane() + i) % kWarp;
    if ((present >> lane & 1) != 0 && !waits_for(lanes[lane], thread.exchange)) return false;
  }
  if (aligned(thread.exchange.op)) check_aligned(lanes, present);
  combine(lanes, present, thread.exchange.op);
  if (present == existing_lanes(thread.warp())) checks_warp_together(thread.warp());
  for (uint32_t rest = present; rest != 0;) {
    const int lane = 31 - std::countl_zero(rest);  // the lowest goes last, hence runs first
    rest &= ~(1u << lane);
    if (&lanes[lane] == running.current) {
      lanes[lane].state = State::ready;
    } else {
      make_ready(lanes[lane]);
    }
  }
  return true;
}

}  // namespace

uint64_t collective(const Site* site, const Exchange& exchange) {
  return collective_at(site, exchange, __builtin_return_address(0));
}

uint64_t collective_at(const Site* site, const Exchange& exchange, const void* pc) {
  Thread& thread = *running.current;
  thread.site = site;
  thread.pc = pc;
  thread.exchange = exchange;
  if ((exchange.mask >> thread.lane() & 1) == 0) {
    report(Finding::collective, pc, thread_name(thread), " is outside of the mask ",
           hex(exchange.mask), " that it passes to ", op_name(exchange.op));
    abort_launch();
  }
  thread.state = State::warp_wait;
  if (!complete_group(thread)) wait_as(State::warp_wait);
  return thread.result;
}

// A thread that exits may be one that others wait for.
void note_exit(const Thread& exited) {
  const uint32_t warp = exited.warp();
  running.exited[warp] |= 1u << exited.lane();
  Thread* lanes = warp_threads(warp);
  for_lanes(lanes, existing_lanes(warp), [&](Thread& other) {
    if (other.state == State::warp_wait && (other.exchange.mask >> exited.lane() & 1) != 0) {
      complete_group(other);  // reports in strict mode
    }
  });
}

int barrier(const Site* site, Vote vote, bool predicate) {
  Thread& thread = *running.current;
  thread.site = site;
  thread.pc = __builtin_return_address(0);
  thread.vote = vote;
  thread.predicate = predicate;
  thread.state = State::barrier_wait;
  ++running.at_barrier;
  release_barrier_if_complete();
  if (thread.state == State::barrier_wait || thread.state == State::ready) wait_as(thread.state);
  return static_cast<int>(thread.result);
}

void release_barrier_if_complete() {
  if (running.live == 0 || running.at_barrier != running.live) return;
  const std::span<Thread> threads(running.threads.data(), running.thread_count);
  const Thread* first = nullptr;
  int count = 0;
  bool divergent = false;
  for (const Thread& thread : threads) {
    if (thread.state != State::barrier_wait) continue;
    if (first == nullptr) first = &thread;
    divergent = divergent || thread.site != first->site;
    count += thread.predicate;
  }
  if (divergent) {
    report(Finding::barrier, first->pc, "threads of one block wait at different barriers",
           waiting_threads());
    abort_launch();
  }
  if (running.live < running.thread_count && running.options.strict_exit) {
    report(Finding::exited, first->pc, "a barrier that ", running.thread_count - running.live,
           " threads of the block have exited before", waiting_threads());
    abort_launch();
  }
  const auto live = static_cast<int>(running.live);
  running.at_barrier = 0;
  checks_barrier();
  const bool backwards = running.options.schedule == Schedule::descending;
  for (size_t i = 0; i < threads.size(); ++i) {  // the last made ready is the first to run
    Thread& thread = threads[backwards ? i : threads.size() - 1 - i];
    if (thread.state != State::barrier_wait) continue;
    const bool answer = thread.vote == Vote::all ? count == live : count > 0;
    thread.result = thread.vote == Vote::count ? static_cast<uint64_t>(count) : answer;
    make_ready(thread);
  }
}

void report_deadlock() {
  report(Finding::deadlock, nullptr, "no thread of the block can go on", waiting_threads());
}

}  // namespace ssc::simt
