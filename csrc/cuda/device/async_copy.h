// cp.async: copies from global to shared memory that bypass the registers. PTX ISA, "Data Movement
// and Conversion Instructions: cp.async", "cp.async.commit_group", "cp.async.wait_group /
// cp.async.wait_all". A copy's bytes may be used by the thread that issued it after its wait, and
// by other threads after a barrier that follows. On 7.5, which has no cp.async, plain loads and
// stores, done at once.
#pragma once

#include "csrc/cuda/device/device.h"

#if defined(SSC_SIMT)
#include "csrc/simt/async_copy.h"
#else
namespace ssc::cuda {

// Copies kBytes (4, 8 or 16; both addresses aligned to as much). 16 bytes go past L1 (.cg).
template <int kBytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(global), "n"(kBytes)
                 : "memory");
  }
#else
  using Bytes = std::conditional_t<kBytes == 4, int, std::conditional_t<kBytes == 8, int2, int4>>;
  *static_cast<Bytes*>(shared) = *static_cast<const Bytes*>(global);
#endif
}

// As cp_async of 16 bytes, or zeros where there is nothing to copy: `global` is not looked at then.
__device__ __forceinline__ void cp_async_or_zeros(void* shared, const void* global, bool there) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global),
               "r"(there ? 16 : 0)
               : "memory");
#else
  *static_cast<int4*>(shared) = there ? *static_cast<const int4*>(global) : int4{};
#endif
}

// Closes the group of this thread's copies since the last commit; a group may be empty.
__device__ __forceinline__ void cp_async_commit() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the kPending youngest groups of this thread are unfinished.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// Waits for all of this thread's copies, committed or not.
__device__ __forceinline__ void cp_async_wait_all() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

}  // namespace ssc::cuda
#endif
