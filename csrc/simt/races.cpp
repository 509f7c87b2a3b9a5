#include "csrc/simt/races.h"

#include <algorithm>
#include <array>
#include <bit>
#include <memory>
#include <unordered_map>

#include "csrc/simt/symbols.h"

namespace ssc::simt {
namespace {

constexpr uint32_t kLanes = 32;
using Clocks = std::vector<uint32_t>;  // per thread of a block

// What a block has published: accesses of older epochs than `epoch`, and of each thread those with
// clocks below its own.
struct Publication {
  uint32_t epoch = 0;
  Clocks clocks;
};

// A variable that threads have done atomics on after a fence: by block, what that published.
using Release = std::unordered_map<uint32_t, Publication>;

struct ThreadClock {
  uint32_t clock = 0;
  std::array<uint32_t, kLanes> seen{};  // of the other lanes of the warp: clocks ordered before now
  uint32_t fence_epoch = 0;             // all accesses of older epochs are fenced
  uint32_t fenced = 0;                  // own clocks below it are fenced
  std::vector<const Release*> acquired;
};

uint32_t epoch = 0;
uint32_t launch_epoch = 0, block_epoch = 0;  // the first of the launch, of the block
std::vector<uint32_t> block_epochs;          // of the launch, the first of each in time
std::vector<ThreadClock> threads;
// By the last barrier, for all threads of the block:
Clocks fenced_at_barrier;
uint32_t fence_epoch_at_barrier = 0;
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

void tick(ThreadClock& thread) { thread.clock = std::min(thread.clock + 1, kMaxClock); }

}  // namespace

void races_start_launch() {
  releases.clear();
  block_epochs.clear();
  launch_epoch = epoch + 1;
}

void races_start_block() {
  block_epoch = ++epoch;
  block_epochs.push_back(epoch);
  threads.assign(running.thread_count, {});
  fenced_at_barrier.assign(running.thread_count, 0);
  fence_epoch_at_barrier = 0;
  acquired_at_barrier.clear();
}

void races_barrier() {
  ++epoch;
  for (uint32_t t = 0; t < running.thread_count; ++t) {
    fenced_at_barrier[t] = threads[t].fenced;
    fence_epoch_at_barrier = std::max(fence_epoch_at_barrier, threads[t].fence_epoch);
    add_all(acquired_at_barrier, threads[t].acquired);
    threads[t].acquired.clear();
  }
}

void races_sync_warp(Thread* lanes, uint32_t mask) {
  std::array<uint32_t, kLanes> joined{};
  uint32_t fence_epoch = 0;
  std::vector<const Release*> acquired;
  const uint32_t first = lanes[0].linear;
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    const auto lane = static_cast<uint32_t>(std::countr_zero(rest));
    ThreadClock& thread = threads[first + lane];
    for (uint32_t i = 0; i < kLanes; ++i) joined[i] = std::max(joined[i], thread.seen[i]);
    // Accesses so far have clocks up to thread.clock; later ones have higher ones.
    joined[lane] = std::max(joined[lane], thread.clock + 1);
    fence_epoch = std::max(fence_epoch, thread.fence_epoch);
    add_all(acquired, thread.acquired);
  }
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    ThreadClock& thread = threads[first + static_cast<uint32_t>(std::countr_zero(rest))];
    tick(thread);
    thread.seen = joined;
    thread.fence_epoch = fence_epoch;
    if (!acquired.empty()) thread.acquired = acquired;
  }
}

void races_fence(const Thread& thread) {
  ThreadClock& clock = threads[thread.linear];
  clock.fence_epoch = epoch;
  clock.fenced = clock.clock + 1;
  tick(clock);
}

void races_atomic(const Thread& thread, uintptr_t address) {
  ThreadClock& clock = threads[thread.linear];
  std::unique_ptr<Release>& release = releases[address];
  if (release == nullptr) release = std::make_unique<Release>();
  const bool fenced = clock.fence_epoch != 0 || fence_epoch_at_barrier != 0;
  if (fenced) {
    Publication& p = (*release)[static_cast<uint32_t>(block_epochs.size())];
    p.epoch = std::max({p.epoch, clock.fence_epoch, fence_epoch_at_barrier});
    p.clocks.resize(running.thread_count, 0);
    for (uint32_t t = 0; t < running.thread_count; ++t) {
      p.clocks[t] = std::max(p.clocks[t], fenced_at_barrier[t]);
    }
    // What lanes of the warp had fenced before a __syncwarp with this one.
    const uint32_t first = thread.linear - thread.lane();
    for (uint32_t lane = 0; first + lane < running.thread_count && lane < kLanes; ++lane) {
      const uint32_t known = std::min(threads[first + lane].fenced, clock.seen[lane]);
      p.clocks[first + lane] = std::max(p.clocks[first + lane], known);
    }
    p.clocks[thread.linear] = std::max(p.clocks[thread.linear], clock.fenced);
  }
  add_all(clock.acquired, {release.get()});
}

Stamp stamp_now(const Thread& thread, const void* pc, bool atomic) {
  Stamp stamp;
  stamp.epoch = epoch;
  stamp.thread = thread.linear;
  stamp.clock = threads[thread.linear].clock;
  stamp.place = image_offset(pc);
  stamp.bytes = 3;
  stamp.atomic = atomic;
  return stamp;
}

bool ordered_before_now(const Stamp& earlier, const Thread& now, bool shared) {
  if (earlier.epoch < launch_epoch) return true;
  if (earlier.epoch < block_epoch) {
    return shared || acquired_by(acquired_at_barrier, earlier) ||
           acquired_by(threads[now.linear].acquired, earlier);
  }
  if (earlier.epoch < epoch || earlier.thread == now.linear) return true;
  if (earlier.thread / kWarp != now.warp()) return false;
  return earlier.clock < threads[now.linear].seen[earlier.thread % kWarp];
}

bool same_block(const Stamp& earlier) { return earlier.epoch >= block_epoch; }

void remember_reader(Cell& cell, const Stamp& reader, const Thread& thread, bool shared) {
  for (Stamp& known : cell.readers) {
    if (known.epoch == 0 || (known.bytes & ~reader.bytes) == 0) {
      if (known.epoch == 0 || ordered_before_now(known, thread, shared)) {
        known = reader;
        return;
      }
    }
  }
  const auto warp = [](const Stamp& s) { return s.thread / kWarp; };
  const Stamp& first = cell.readers[0];
  Stamp& second = cell.readers[1];
  if (first.epoch == second.epoch && warp(first) == warp(second) && warp(first) != warp(reader)) {
    second = reader;
  }
}

}  // namespace ssc::simt
