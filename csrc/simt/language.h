// The CUDA language under g++: qualifiers, built-in variables, barriers, fences.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace ssc::simt {

// A place in a kernel's source. Its address is its identity, finer than file and line: two barriers
// on one line, or the same barrier in two instances of a template, are two places.
struct Site {
  const char* file;
  int line;
  const char* function;
};

// The indices of the running thread. They don't change during one thread's run of a kernel, so the
// compiler may keep them.
[[gnu::const]] uint3 thread_index() noexcept;
[[gnu::const]] uint3 block_index() noexcept;
[[gnu::const]] dim3 block_size() noexcept;
[[gnu::const]] dim3 grid_size() noexcept;

void* dynamic_shared() noexcept;

enum class Vote : uint8_t { none, count, all, any };
int barrier(const Site* site, Vote vote = Vote::none, bool predicate = false);
void thread_fence();
[[noreturn]] void trap();

}  // namespace ssc::simt

#if defined(SSC_SIMT_CHECKED) && defined(SSC_SIMT_KERNEL)
// The string functions that kernels call, or that the compiler calls for them, go to hooks.cpp.
extern "C" {
void* memcpy(void*, const void*, size_t) noexcept __asm__("ssc_simt_memcpy");
void* memmove(void*, const void*, size_t) noexcept __asm__("ssc_simt_memmove");
void* memset(void*, int, size_t) noexcept __asm__("ssc_simt_memset");
}
#endif

// For what stands between a kernel and a function of the executor, whose return address is to lie
// in the kernel.
#define SSC_SIMT_INLINE __attribute__((always_inline)) inline

#define SSC_SIMT_SITE()                                                                   \
  (__extension__({                                                                        \
    static constexpr ::ssc::simt::Site ssc_site{__FILE__, __LINE__, __PRETTY_FUNCTION__}; \
    &ssc_site;                                                                            \
  }))
#define SSC_SIMT_JOIN_(a, b) a##b
#define SSC_SIMT_JOIN(a, b) SSC_SIMT_JOIN_(a, b)

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __shared__
#undef __launch_bounds__
#undef __grid_constant__
#undef __forceinline__
#define __global__
#define __device__
#define __host__
#define __constant__
#define __launch_bounds__(...)
#define __grid_constant__
#define __forceinline__ SSC_SIMT_INLINE

// A static shared variable is a thread_local one: the executor finds those of this library in its
// symbol table, poisons them for each block and knows their extent. The unused array in front of
// each keeps neighbours apart (-fno-toplevel-reorder keeps the order), so that an index that is off
// by one hits no other variable.
#define __shared__                                                                            \
  [[gnu::used]] static thread_local unsigned char SSC_SIMT_JOIN(ssc_guard_, __COUNTER__)[64]; \
  static thread_local

#define threadIdx (::ssc::simt::thread_index())
#define blockIdx (::ssc::simt::block_index())
#define blockDim (::ssc::simt::block_size())
#define gridDim (::ssc::simt::grid_size())
constexpr int warpSize = 32;

#define __syncthreads() ((void)::ssc::simt::barrier(SSC_SIMT_SITE()))
#define __syncthreads_count(p) \
  ::ssc::simt::barrier(SSC_SIMT_SITE(), ::ssc::simt::Vote::count, (p) != 0)
#define __syncthreads_and(p) ::ssc::simt::barrier(SSC_SIMT_SITE(), ::ssc::simt::Vote::all, (p) != 0)
#define __syncthreads_or(p) ::ssc::simt::barrier(SSC_SIMT_SITE(), ::ssc::simt::Vote::any, (p) != 0)

inline void __threadfence() { ::ssc::simt::thread_fence(); }
inline void __threadfence_system() { ::ssc::simt::thread_fence(); }
// Within a block only barriers and __syncwarp order accesses for the race check.
inline void __threadfence_block() {}
