#include "csrc/simt/races.h"

#include <algorithm>
#include <array>
#include <bit>
#include <memory>
#include <unordered_map>

#include "csrc/simt/symbols.h"

namespace ssc::simt {

Epochs epochs;

namespace {

constexpr uint32_t kLanes = 32;
using Clocks = std::vector<uint32_t>;  // per thread of a block

// The accesses that a block has published: those of older epochs than `epoch`, and of each thread
// those with clocks below its own.
struct Publication {
  uint32_t epoch = 0;
  Clocks clocks;
};

// A variable that threads have done atomics on after a fence: by block, what that published.
using Release = std::unordered_map<uint32_t, Publication>;

struct ThreadClock {
  uint32_t clock = 0;
  std::array<uint32_t, kLanes> seen{};  // of the other lanes of the warp: clocks ordered before now
  // The accesses that a fence ordered before now covers: all of older epochs than this, and of each
  // lane those with clocks below this.
  uint32_t fenced_epoch = 0;
  std::array<uint32_t, kLanes> fenced{};
  std::vector<const Release*> acquired;
};

std::vector<uint32_t> block_epochs;  // of the launch, the first of each in time
std::vector<ThreadClock> threads;
// By the last barrier, for all threads of the block:
Clocks fenced_at_barrier;
uint32_t fenced_epoch_at_barrier = 0;
bool block_has_fences = false;
std::vector<const Release*> acquired_at_barrier;

std::unordered_map<uintptr_t, std::unique_ptr<Release>> releases;  // by address, per launch

bool published(const Release& release, const Stamp& access, uint32_t block) {
  const auto found = release.find(block);
  if (found == release.end()) return false;
  const Publication& p = found->second;
  return access.epoch < p.epoch ||
         (access.thread < p.clocks.size() && access.clock < p.clocks[access.thread]);
}

bool acquired_by(const std::vector<const Release*>& acquired, const Stamp& access) {
  if (acquired.empty()) return false;
  const auto after = std::ranges::upper_bound(block_epochs, access.epoch);
  const auto block = static_cast<uint32_t>(after - block_epochs.begin());
  return std::ranges::any_of(acquired,
                             [&](const Release* r) { return published(*r, access, block); });
}

void add_all(std::vector<const Release*>& to, const std::vector<const Release*>& from) {
  for (const Release* release : from) {
    if (std::ranges::find(to, release) == to.end()) to.push_back(release);
  }
}

void raise(std::array<uint32_t, kLanes>& clocks, const std::array<uint32_t, kLanes>& to) {
  for (uint32_t i = 0; i < kLanes; ++i) clocks[i] = std::max(clocks[i], to[i]);
}

void tick(ThreadClock& thread) { thread.clock = std::min(thread.clock + 1, kMaxClock); }

}  // namespace

void races_start_launch() {
  releases.clear();
  block_epochs.clear();
  epochs.launch = epochs.now + 1;
}

void races_start_block() {
  epochs.block = ++epochs.now;
  block_epochs.push_back(epochs.now);
  threads.assign(running.thread_count, {});
  fenced_at_barrier.assign(running.thread_count, 0);
  fenced_epoch_at_barrier = 0;
  block_has_fences = false;
  acquired_at_barrier.clear();
}

void races_barrier() {
  ++epochs.now;
  if (block_has_fences) {
    for (uint32_t t = 0; t < running.thread_count; ++t) {
      const ThreadClock& thread = threads[t];
      fenced_epoch_at_barrier = std::max(fenced_epoch_at_barrier, thread.fenced_epoch);
      const uint32_t first = t - t % kLanes;
      for (uint32_t i = 0; i < kLanes && first + i < running.thread_count; ++i) {
        fenced_at_barrier[first + i] = std::max(fenced_at_barrier[first + i], thread.fenced[i]);
      }
    }
  }
  for (ThreadClock& thread : threads) {
    if (thread.acquired.empty()) continue;
    add_all(acquired_at_barrier, thread.acquired);
    thread.acquired.clear();
  }
}

void races_sync_warp(Thread* lanes, uint32_t mask) {
  ThreadClock* clocks = &threads[lanes[0].linear];
  ThreadClock joined;
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    const auto lane = static_cast<uint32_t>(std::countr_zero(rest));
    const ThreadClock& thread = clocks[lane];
    raise(joined.seen, thread.seen);
    raise(joined.fenced, thread.fenced);
    // Accesses so far have clocks up to thread.clock; later ones have higher ones.
    joined.seen[lane] = std::max(joined.seen[lane], thread.clock + 1);
    joined.fenced_epoch = std::max(joined.fenced_epoch, thread.fenced_epoch);
    add_all(joined.acquired, thread.acquired);
  }
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    ThreadClock& thread = clocks[std::countr_zero(rest)];
    joined.clock = thread.clock;
    tick(joined);
    thread = joined;
  }
}

void races_fence(const Thread& thread) {
  ThreadClock& clock = threads[thread.linear];
  block_has_fences = true;
  clock.fenced_epoch = epochs.now;
  raise(clock.fenced, clock.seen);
  clock.fenced[thread.lane()] = clock.clock + 1;
  tick(clock);
}

void races_atomic(const Thread& thread, uintptr_t address) {
  ThreadClock& clock = threads[thread.linear];
  std::unique_ptr<Release>& release = releases[address];
  if (release == nullptr) release = std::make_unique<Release>();
  if (block_has_fences) {
    Publication& p = (*release)[static_cast<uint32_t>(block_epochs.size())];
    p.epoch = std::max({p.epoch, clock.fenced_epoch, fenced_epoch_at_barrier});
    p.clocks.resize(running.thread_count, 0);
    for (uint32_t t = 0; t < running.thread_count; ++t) {
      p.clocks[t] = std::max(p.clocks[t], fenced_at_barrier[t]);
    }
    const uint32_t first = thread.linear - thread.lane();
    for (uint32_t i = 0; i < kLanes && first + i < running.thread_count; ++i) {
      p.clocks[first + i] = std::max(p.clocks[first + i], clock.fenced[i]);
    }
  }
  add_all(clock.acquired, {release.get()});
}

Stamp stamp_now(const Thread& thread, const void* pc, bool atomic) {
  Stamp stamp;
  stamp.epoch = epochs.now;
  stamp.thread = thread.linear;
  stamp.clock = threads[thread.linear].clock;
  stamp.place = image_offset(pc);
  stamp.bytes = 3;
  stamp.atomic = atomic;
  return stamp;
}

bool ordered_by_sync_or_fence(const Stamp& earlier, const Thread& now, bool shared) {
  if (!same_block(earlier)) {
    return shared || acquired_by(acquired_at_barrier, earlier) ||
           acquired_by(threads[now.linear].acquired, earlier);
  }
  return earlier.clock < threads[now.linear].seen[earlier.thread % kWarp];
}

}  // namespace ssc::simt
