// The functions that g++ -fsanitize=thread calls before each access of the kernels, and the string
// functions.
// libtsan is not linked: these definitions take its place. (GCC's hooks are used because clang has
// none for 16-byte accesses.)
#include <cstring>

#include "csrc/simt/atomics.h"
#include "csrc/simt/checks.h"
#include "csrc/simt/report.h"

namespace ssc::simt {
namespace {

inline void see(const void* address, uint32_t bytes, Access access, const void* pc) {
  if (running.current != nullptr) checks_access(address, bytes, access, pc);
}

inline void see_aligned(const void* address, uint32_t bytes, Access access, const void* pc) {
  if (running.current == nullptr) return;
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    report(Finding::misaligned, pc, access == Access::read ? "read" : "write", " of ", bytes,
           " bytes at ", hex(reinterpret_cast<uintptr_t>(address)),
           ", which is not a multiple of that");
    abort_launch();
  }
  checks_access(address, bytes, access, pc);
}

}  // namespace

void atomic_access(const void* address, uint32_t bytes, const void* pc) {
  if (running.current == nullptr) return;
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    report(Finding::misaligned, pc, "atomic of ", bytes, " bytes at ",
           hex(reinterpret_cast<uintptr_t>(address)));
    abort_launch();
  }
  checks_access(address, bytes, Access::atomic, pc);
}

}  // namespace ssc::simt

using ssc::simt::Access;
using ssc::simt::see;
using ssc::simt::see_aligned;

#define SSC_PC __builtin_return_address(0)
#define SSC_HOOKS(bytes)                                                                       \
  void __tsan_read##bytes(void* p) { see_aligned(p, bytes, Access::read, SSC_PC); }            \
  void __tsan_write##bytes(void* p) { see_aligned(p, bytes, Access::write, SSC_PC); }          \
  void __tsan_volatile_read##bytes(void* p) { see_aligned(p, bytes, Access::read, SSC_PC); }   \
  void __tsan_volatile_write##bytes(void* p) { see_aligned(p, bytes, Access::write, SSC_PC); } \
  void __tsan_unaligned_read##bytes(void* p) { see(p, bytes, Access::read, SSC_PC); }          \
  void __tsan_unaligned_write##bytes(void* p) { see(p, bytes, Access::write, SSC_PC); }

// Atomics of the C++ library occur in host code alone (reference counts, guards of statics).
#define SSC_ATOMICS(bits, Type)                                                                    \
  Type __tsan_atomic##bits##_load(const volatile Type* p, int) {                                   \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                   \
  }                                                                                                \
  void __tsan_atomic##bits##_store(volatile Type* p, Type v, int) {                                \
    __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                                      \
  }                                                                                                \
  Type __tsan_atomic##bits##_exchange(volatile Type* p, Type v, int) {                             \
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                                            \
  }                                                                                                \
  Type __tsan_atomic##bits##_fetch_add(volatile Type* p, Type v, int) {                            \
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);                                             \
  }                                                                                                \
  Type __tsan_atomic##bits##_fetch_sub(volatile Type* p, Type v, int) {                            \
    return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST);                                             \
  }                                                                                                \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile Type* p, Type* e, Type v, int, int) { \
    return __atomic_compare_exchange_n(p, e, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);        \
  }

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}

SSC_HOOKS(1)
SSC_HOOKS(2)
SSC_HOOKS(4)
SSC_HOOKS(8)
SSC_HOOKS(16)

void __tsan_read_range(void* p, unsigned long bytes) {
  see(p, static_cast<uint32_t>(bytes), Access::read, SSC_PC);
}
void __tsan_write_range(void* p, unsigned long bytes) {
  see(p, static_cast<uint32_t>(bytes), Access::write, SSC_PC);
}

SSC_ATOMICS(8, unsigned char)
SSC_ATOMICS(16, unsigned short)
SSC_ATOMICS(32, unsigned)
SSC_ATOMICS(64, unsigned long)

// Calls from kernels land here (language.h); they have no hooks of their own.
void* ssc_simt_memcpy(void* to, const void* from, size_t bytes) {
  if (bytes > 0) {
    see(from, static_cast<uint32_t>(bytes), Access::read, SSC_PC);
    see(to, static_cast<uint32_t>(bytes), Access::write, SSC_PC);
  }
  return std::memcpy(to, from, bytes);
}
void* ssc_simt_memmove(void* to, const void* from, size_t bytes) {
  if (bytes > 0) {
    see(from, static_cast<uint32_t>(bytes), Access::read, SSC_PC);
    see(to, static_cast<uint32_t>(bytes), Access::write, SSC_PC);
  }
  return std::memmove(to, from, bytes);
}
void* ssc_simt_memset(void* to, int value, size_t bytes) {
  if (bytes > 0) see(to, static_cast<uint32_t>(bytes), Access::write, SSC_PC);
  return std::memset(to, value, bytes);
}

}  // extern "C"
