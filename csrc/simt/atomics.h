// Atomic functions. Threads switch only inside collectives and barriers, so a plain read and write
// is atomic; the checked build is told about each as an atomic access.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <concepts>
#include <cstring>
#include <type_traits>

#include "csrc/simt/language.h"

namespace ssc::simt {

#if defined(SSC_SIMT_CHECKED)
void atomic_access(const void* address, uint32_t bytes, const void* pc);
#define SSC_SIMT_UNSEEN __attribute__((no_sanitize("thread"), noinline))
#else
inline void atomic_access(const void*, uint32_t, const void*) {}
#define SSC_SIMT_UNSEEN inline
#endif

// *address = update(*address); returns what was there.
template <class T, class Update>
SSC_SIMT_UNSEEN T read_modify_write(T* address, const Update& update) {
  atomic_access(address, sizeof(T), __builtin_return_address(0));
  const T old = *address;
  *address = update(old);
  return old;
}

template <class T, class... Types>
concept AnyOf = (std::same_as<T, Types> || ...);
template <class T>
concept Int32 = AnyOf<T, int, unsigned>;
template <class T>
concept AtomicInt = AnyOf<T, int, unsigned, unsigned long long>;
template <class T>
concept AtomicExtremum = AnyOf<T, int, unsigned, unsigned long long, long long>;
template <class T>
concept AtomicSum =
    AnyOf<T, int, unsigned, unsigned long long, float, double, __half, __nv_bfloat16>;

// Sums of the 16-bit types are rounded once, as atom.add.noftz does.
template <class T>
T atomic_sum(T a, T b) {
  if constexpr (std::same_as<T, __half>) {
    return __float2half_rn(__half2float(a) + __half2float(b));
  } else if constexpr (std::same_as<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(__bfloat162float(a) + __bfloat162float(b));
  } else {
    return static_cast<T>(a + b);
  }
}

}  // namespace ssc::simt

#define SSC_SIMT_ATOMIC(concept_, name, expression)                                         \
  template <::ssc::simt::concept_ T>                                                        \
  SSC_SIMT_INLINE T name(T* address, std::type_identity_t<T> value) {                       \
    return ::ssc::simt::read_modify_write(                                                  \
        address,                                                                            \
        [value](T old) __attribute__((no_sanitize("thread"))) -> T { return expression; }); \
  }
SSC_SIMT_ATOMIC(AtomicSum, atomicAdd, ::ssc::simt::atomic_sum(old, value))
SSC_SIMT_ATOMIC(Int32, atomicSub, static_cast<T>(old - value))
SSC_SIMT_ATOMIC(AtomicExtremum, atomicMin, old < value ? old : value)
SSC_SIMT_ATOMIC(AtomicExtremum, atomicMax, old > value ? old : value)
SSC_SIMT_ATOMIC(AtomicInt, atomicAnd, old& value)
SSC_SIMT_ATOMIC(AtomicInt, atomicOr, old | value)
SSC_SIMT_ATOMIC(AtomicInt, atomicXor, old ^ value)
#undef SSC_SIMT_ATOMIC

template <class T>
  requires(::ssc::simt::AtomicInt<T> || std::same_as<T, float>)
SSC_SIMT_INLINE T atomicExch(T* address, std::type_identity_t<T> value) {
  return ::ssc::simt::read_modify_write(
      address, [value](T) __attribute__((no_sanitize("thread"))) { return value; });
}

template <class T>
  requires(::ssc::simt::AtomicInt<T> || std::same_as<T, unsigned short>)
SSC_SIMT_INLINE T atomicCAS(T* address, std::type_identity_t<T> expected,
                            std::type_identity_t<T> value) {
  return ::ssc::simt::read_modify_write(
      address, [expected, value](T old) __attribute__((no_sanitize("thread"))) {
        return old == expected ? value : old;
      });
}

SSC_SIMT_INLINE unsigned atomicInc(unsigned* address, unsigned limit) {
  return ::ssc::simt::read_modify_write(
      address, [limit](unsigned old)
                   __attribute__((no_sanitize("thread"))) { return old >= limit ? 0u : old + 1; });
}
SSC_SIMT_INLINE unsigned atomicDec(unsigned* address, unsigned limit) {
  return ::ssc::simt::read_modify_write(
      address, [limit](unsigned old) __attribute__((no_sanitize("thread"))) {
        return old == 0 || old > limit ? limit : old - 1;
      });
}
