#include "csrc/simt/shared_memory.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "csrc/simt/executor.h"
#include "csrc/simt/report.h"
#include "csrc/simt/symbols.h"

#if defined(SSC_SIMT_ASAN)
#include <sanitizer/asan_interface.h>
#endif

namespace ssc::simt {
namespace {

constexpr size_t kGuardBytes = 256;
constexpr unsigned char kGuard = 0xa5;

struct alignas(1024) DynamicMemory {
  unsigned char bytes[kMaxDynamicShared + kGuardBytes];
};

unsigned char* dynamic_memory() {
  static const std::unique_ptr<DynamicMemory> memory(new DynamicMemory);
  return memory->bytes;
}

bool changed(const unsigned char* bytes, size_t count) {
  return std::any_of(bytes, bytes + count, [](unsigned char b) { return b != kGuard; });
}

}  // namespace

void* dynamic_shared() noexcept { return dynamic_memory(); }

void poison_shared_memory(size_t dynamic_bytes) {
  unsigned char* memory = dynamic_memory();
#if defined(SSC_SIMT_ASAN)
  __asan_unpoison_memory_region(memory, sizeof(DynamicMemory));
#endif
  std::memset(memory, kPoison, dynamic_bytes);
  std::memset(memory + dynamic_bytes, kGuard, kGuardBytes);
#if defined(SSC_SIMT_ASAN)
  __asan_poison_memory_region(memory + dynamic_bytes, sizeof(DynamicMemory) - dynamic_bytes);
#endif
  if (shared_variables().empty()) return;
  unsigned char* block = thread_local_block();
  for (const SharedVariable& variable : shared_variables()) {
    if (variable.kind == TlsKind::foreign) continue;
    const unsigned char fill = variable.kind == TlsKind::guard ? kGuard : kPoison;
    std::memset(block + variable.offset, fill, variable.bytes);
  }
}

void check_shared_guards() {
#if defined(SSC_SIMT_ASAN)
  __asan_unpoison_memory_region(dynamic_memory(), sizeof(DynamicMemory));
#endif
  if (changed(dynamic_memory() + running.shared_bytes, kGuardBytes)) {
    report(Finding::bounds, running.call->kernel, "the block wrote behind its ",
           running.shared_bytes, " bytes of dynamic shared memory");
  }
  if (shared_variables().empty()) return;
  const unsigned char* block = thread_local_block();
  const SharedVariable* before = nullptr;
  for (const SharedVariable& variable : shared_variables()) {
    if (variable.kind == TlsKind::guard && changed(block + variable.offset, variable.bytes)) {
      report(Finding::bounds, running.call->kernel, "the block wrote behind the static shared ",
             before == nullptr ? "memory" : before->name.c_str());
    }
    if (variable.kind == TlsKind::shared) before = &variable;
  }
}

}  // namespace ssc::simt
