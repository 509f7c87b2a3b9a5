// cp.async: copies wait in their thread's queue until the thread waits for them. PTX ISA, "Data
// Movement and Conversion Instructions: cp.async", "cp.async.commit_group", "cp.async.wait_group".
#include "csrc/simt/async_copy.h"

#include <cstring>

#include "csrc/simt/checks.h"
#include "csrc/simt/executor.h"
#include "csrc/simt/report.h"
#include "csrc/simt/shared_memory.h"

namespace ssc::simt {
namespace {

void land(Thread& thread, size_t count, const void* pc) {
  for (size_t i = 0; i < count; ++i) {
    const PendingCopy& copy = thread.copies[i];
    std::memcpy(copy.shared, copy.data, copy.bytes);
    checks_copy_landed(copy.shared, copy.bytes, pc);
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + static_cast<long>(count));
}

[[noreturn]] void reject(const void* pc, const char* what, const void* address, int bytes) {
  report(Finding::misaligned, pc, "cp.async of ", bytes, " bytes with a misaligned ", what, " ",
         hex(reinterpret_cast<uint64_t>(address)));
  abort_launch();
}

void issue(void* shared, const void* data, int bytes, const void* pc) {
  const auto mask = static_cast<uint64_t>(bytes) - 1;
  if ((reinterpret_cast<uint64_t>(shared) & mask) != 0) reject(pc, "destination", shared, bytes);
  PendingCopy copy{static_cast<std::byte*>(shared), {}, static_cast<uint8_t>(bytes)};
  std::memcpy(copy.data, data, static_cast<size_t>(bytes));
  checks_copy_issued(shared, static_cast<uint32_t>(bytes), pc);
  std::memset(shared, kPoison, static_cast<size_t>(bytes));
  running.current->copies.push_back(copy);
}

}  // namespace

void async_copy(void* shared, const void* global, int bytes) {
  const void* pc = __builtin_return_address(0);
  const auto mask = static_cast<uint64_t>(bytes) - 1;
  if ((reinterpret_cast<uint64_t>(global) & mask) != 0) reject(pc, "source", global, bytes);
  checks_access(global, static_cast<uint32_t>(bytes), Access::read, pc);
  issue(shared, global, bytes, pc);
}

void async_zeros(void* shared, int bytes) {
  constexpr std::byte kZeros[16] = {};
  issue(shared, kZeros, bytes, __builtin_return_address(0));
}

void async_commit() {
  Thread& thread = *running.current;
  thread.groups.push_back(static_cast<uint32_t>(thread.copies.size()));
}

void async_wait(int pending) {
  Thread& thread = *running.current;
  const size_t keep = static_cast<size_t>(pending);
  if (thread.groups.size() <= keep) return;
  const size_t done = thread.groups.size() - keep;
  const uint32_t count = thread.groups[done - 1];
  land(thread, count, __builtin_return_address(0));
  thread.groups.erase(thread.groups.begin(), thread.groups.begin() + static_cast<long>(done));
  for (uint32_t& end : thread.groups) end -= count;
}

void async_wait_all() {
  Thread& thread = *running.current;
  land(thread, thread.copies.size(), __builtin_return_address(0));
  thread.groups.clear();
}

void forget_copies(Thread& thread) {
  thread.copies.clear();
  thread.groups.clear();
}

}  // namespace ssc::simt
