// Every access of a kernel in the checked build: to which memory, allowed, aligned, initialised,
// ordered. Findings that would let the process crash end the launch; the others don't.
#include "csrc/simt/checks.h"

#include <algorithm>
#include <memory>
#include <unordered_map>

#include "csrc/simt/memory_statistics.h"
#include "csrc/simt/races.h"
#include "csrc/simt/report.h"
#include "csrc/simt/shadow.h"
#include "csrc/simt/shared_memory.h"
#include "csrc/simt/symbols.h"

namespace ssc::simt {
namespace {

// The memory that an address belongs to.
struct Target {
  Shadow* shadow = nullptr;  // null: memory that needs no check, such as a thread's own stack
  uintptr_t start = 0, bytes = 0;
  bool shared = false, writable = true;
  const char* name = "";
};

std::unordered_map<uintptr_t, std::unique_ptr<Shadow>> buffer_shadows;  // by start
uintptr_t dynamic_start, static_start, static_bytes;
std::unique_ptr<Shadow> dynamic_shadow, static_shadow;

const char* access_name(Access access) {
  constexpr const char* kNames[] = {"read", "write", "atomic"};
  return kNames[static_cast<size_t>(access)];
}

const SharedVariable* variable_at(uint64_t offset) {
  const auto& all = shared_variables();
  const auto after = std::ranges::upper_bound(all, offset, {}, &SharedVariable::offset);
  if (after == all.begin()) return nullptr;
  return offset - (after - 1)->offset < (after - 1)->bytes ? &*(after - 1) : nullptr;
}

// The shared variable that ends last before the offset: the one that an index ran out of.
const SharedVariable* variable_before(uint64_t offset) {
  const SharedVariable* before = nullptr;
  for (const SharedVariable& variable : shared_variables()) {
    if (variable.offset < offset && variable.kind == TlsKind::shared) before = &variable;
  }
  return before;
}

std::string out_of_bounds_text(uintptr_t address) {
  std::ostringstream text;
  if (address - dynamic_start < kMaxDynamicShared + kWarp) {
    text << address - dynamic_start << " bytes into dynamic shared memory of "
         << running.shared_bytes;
  } else if (address - static_start < static_bytes) {
    const SharedVariable* variable = variable_before(address - static_start);
    text << "in no static shared variable";
    if (variable != nullptr) {
      text << ", " << address - static_start - variable->offset << " bytes into " << variable->name
           << " of " << variable->bytes;
    }
  } else if (const Buffer* buffer = nearest_buffer(address); buffer != nullptr) {
    const auto offset = static_cast<int64_t>(address - buffer->start);
    const bool behind = offset >= 0;
    text << "at no declared buffer: "
         << (behind ? offset - static_cast<int64_t>(buffer->bytes) : -offset) << " bytes "
         << (behind ? "behind " : "in front of ") << buffer->name << ", which has "
         << buffer->bytes;
  } else {
    text << "at " << hex(address) << ", and no buffer was declared";
  }
  return text.str();
}

[[noreturn]] void out_of_bounds(uintptr_t address, uint32_t bytes, Access access, const void* pc) {
  report(Finding::bounds, pc, access_name(access), " of ", bytes, " bytes ",
         out_of_bounds_text(address));
  abort_launch();
}

bool is_argument(uintptr_t address, uint32_t bytes) {
  const auto start = reinterpret_cast<uintptr_t>(running.call->arguments);
  return address - start < running.call->argument_bytes &&
         address + bytes <= start + running.call->argument_bytes;
}

Target target_of(uintptr_t address, uint32_t bytes, Access access, const void* pc) {
  if (on_fiber(reinterpret_cast<const void*>(address))) return {};
  if (address - dynamic_start < running.shared_bytes) {
    return {dynamic_shadow.get(),   dynamic_start, running.shared_bytes, true, true,
            "dynamic shared memory"};
  }
  if (address - static_start < static_bytes) {
    const SharedVariable* variable = variable_at(address - static_start);
    if (variable != nullptr && variable->kind == TlsKind::foreign) return {};
    if (variable == nullptr || variable->kind == TlsKind::guard) {
      out_of_bounds(address, bytes, access, pc);
    }
    return {static_shadow.get(),   static_start + variable->offset, variable->bytes, true, true,
            variable->name.c_str()};
  }
  if (const Buffer* buffer = find_buffer(address); buffer != nullptr) {
    return {buffer_shadows.at(buffer->start).get(),
            buffer->start,
            buffer->bytes,
            false,
            buffer->writable,
            buffer->name.c_str()};
  }
  const bool constant = is_argument(address, bytes) || in_image(reinterpret_cast<void*>(address));
  if (constant && access == Access::read) return {};
  if (running.options.bounds) out_of_bounds(address, bytes, access, pc);
  return {};
}

size_t shadow_offset(const Target& target, uintptr_t address) {
  return target.shadow == static_shadow.get() ? address - static_start : address - target.start;
}

void report_race(const Target& target, uintptr_t address, Access access, const void* pc,
                 const Stamp& earlier, const char* earlier_access) {
  report(Finding::race, pc, access_name(access), " of ", target.name, " at byte ",
         address - target.start, " is not ordered after the ", earlier_access, " by thread ",
         earlier.thread, same_block(earlier) ? " of the same block" : " of another block", " at ",
         place_of(image_address(earlier.place)));
}

void check_races(const Target& target, uintptr_t address, uint32_t bytes, Access access,
                 const void* pc) {
  const Thread& thread = *running.current;
  const size_t first = shadow_offset(target, address), end = first + bytes;
  Stamp now = stamp_now(thread, pc, access == Access::atomic);
  const auto races = [&](const Stamp& earlier) {
    return earlier.epoch != 0 && (earlier.bytes & now.bytes) != 0 &&
           !(earlier.atomic && now.atomic) && !ordered_before_now(earlier, thread, target.shared);
  };
  for (size_t at = first & ~size_t{1}; at < end; at += 2) {
    Cell& cell = target.shadow->cell(at);
    now.bytes = (at >= first ? 1 : 0) | (at + 1 < end ? 2 : 0);
    if (races(cell.writer)) {
      report_race(target, address, access, pc, cell.writer, "write");
    }
    if (access == Access::read) {
      remember_reader(cell, now, thread, target.shared);
      continue;
    }
    for (Stamp& reader : cell.readers) {
      if (races(reader)) report_race(target, address, access, pc, reader, "read");
      reader = {};
    }
    cell.writer = now;
  }
}

void check_states(const Target& target, uintptr_t address, uint32_t bytes, Access access,
                  const void* pc) {
  const size_t first = shadow_offset(target, address);
  for (size_t at = first; at < first + bytes; ++at) {
    uint8_t& state = target.shadow->state(at);
    if (state == kInFlight) {
      report(Finding::race, pc, access_name(access), " of ", target.name, " at byte ",
             address - target.start, ", which a cp.async has not yet been waited for");
      return;
    }
    if (access == Access::write) {
      state = kInitialised;
    } else if (state == kEmpty) {
      report(Finding::uninitialised, pc, access_name(access), " of ", bytes, " bytes of ",
             target.name, " at byte ", address - target.start, ", where nothing was written");
      return;
    }
  }
}

void check_range(const Target& target, uintptr_t address, uint32_t bytes, Access access,
                 const void* pc) {
  if (running.options.bounds && address + bytes > target.start + target.bytes) {
    report(Finding::bounds, pc, access_name(access), " of ", bytes, " bytes at byte ",
           address - target.start, " of ", target.name, ", which has ", target.bytes);
    abort_launch();
  }
  if (running.options.bounds && !target.writable && access != Access::read) {
    report(Finding::bounds, pc, access_name(access), " of ", target.name, " at byte ",
           address - target.start, ", which is read-only");
    abort_launch();
  }
}

}  // namespace

void checks_access(const void* pointer, uint32_t bytes, Access access, const void* pc) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  const Target target = target_of(address, bytes, access, pc);
  if (target.shadow == nullptr) return;
  check_range(target, address, bytes, access, pc);
  if (running.options.statistics) {
    count_access(pc, target.shared, access, address, target.start, bytes);
  }
  if (access == Access::atomic) races_atomic(*running.current, address);
  if (running.options.races) check_races(target, address, bytes, access, pc);
  if (running.options.initialised) check_states(target, address, bytes, access, pc);
}

void checks_copy_issued(const void* shared, uint32_t bytes, const void* pc) {
  const auto address = reinterpret_cast<uintptr_t>(shared);
  const Target target = target_of(address, bytes, Access::write, pc);
  if (target.shadow == nullptr || !target.shared) {
    report(Finding::bounds, pc, "the destination of cp.async is not in shared memory");
    abort_launch();
  }
  checks_access(shared, bytes, Access::write, pc);
  target.shadow->set_states(shadow_offset(target, address), bytes, kInFlight);
}

void checks_copy_landed(const void* shared, uint32_t bytes, const void* pc) {
  const auto address = reinterpret_cast<uintptr_t>(shared);
  const Target target = target_of(address, bytes, Access::write, pc);
  target.shadow->set_states(shadow_offset(target, address), bytes, kInitialised);
  if (running.options.races) check_races(target, address, bytes, Access::write, pc);
}

void checks_ldmatrix(Thread* lanes, const void* const* rows, uint32_t count, const void* pc) {
  Thread* current = running.current;
  for (uint32_t lane = 0; lane < 8 * count; ++lane) {
    const auto address = reinterpret_cast<uintptr_t>(rows[lane]);
    running.current = &lanes[lane];  // each lane reads its row
    const Target target = target_of(address, 16, Access::read, pc);
    if (target.shadow == nullptr || !target.shared) {
      report(Finding::bounds, pc, "ldmatrix: the row of lane ", lane, " is not in shared memory");
      running.current = current;
      abort_launch();
    }
    check_range(target, address, 16, Access::read, pc);
    if (running.options.statistics) count_matrix_row(pc, address, target.start);
    if (running.options.races) check_races(target, address, 16, Access::read, pc);
    if (running.options.initialised) check_states(target, address, 16, Access::read, pc);
  }
  running.current = current;
}

void checks_start_launch() {
  if (dynamic_shadow == nullptr) {
    dynamic_shadow = std::make_unique<Shadow>(kMaxDynamicShared);
    static_shadow = std::make_unique<Shadow>(thread_local_bytes());
  }
  dynamic_start = reinterpret_cast<uintptr_t>(dynamic_shared());
  static_start = reinterpret_cast<uintptr_t>(thread_local_block());
  static_bytes = thread_local_bytes();
  races_start_launch();
  statistics_start_launch();
}

void checks_end_launch() {}

void checks_start_block() {
  dynamic_shadow->set_states(0, running.shared_bytes, kEmpty);
  static_shadow->set_states(0, static_bytes, kEmpty);
  races_start_block();
  statistics_start_block();
}

void checks_end_block() { statistics_flush(); }

void checks_barrier() {
  races_barrier();
  statistics_flush();
}

void checks_sync_warp(Thread* lanes, uint32_t mask) { races_sync_warp(lanes, mask); }
void checks_warp_together(uint32_t warp) { statistics_flush_warp(warp); }

void thread_fence() { races_fence(*running.current); }

void checks_new_buffer(const Buffer& buffer) {
  auto shadow = std::make_unique<Shadow>(buffer.bytes);
  if (buffer.initialised) shadow->set_states(0, buffer.bytes, kInitialised);
  buffer_shadows[buffer.start] = std::move(shadow);
}

void checks_forget_buffers() { buffer_shadows.clear(); }

void checks_host_wrote(const void* memory, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(memory);
  const Buffer* buffer = find_buffer(address);
  if (buffer == nullptr) return;
  const size_t count = std::min(bytes, buffer->start + buffer->bytes - address);
  buffer_shadows.at(buffer->start)->set_states(address - buffer->start, count, kInitialised);
}

}  // namespace ssc::simt
