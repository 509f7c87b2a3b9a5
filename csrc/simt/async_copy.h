// Twins of csrc/cuda/device/async_copy.h. A copy's destination is poisoned when issued and filled
// when its group is waited for, so that a missing wait shows.
#pragma once

#include "csrc/simt/language.h"

namespace ssc::simt {

void async_copy(void* shared, const void* global, int bytes);
void async_zeros(void* shared, int bytes);
void async_commit();
void async_wait(int pending);
void async_wait_all();

}  // namespace ssc::simt

namespace ssc::cuda {

template <int kBytes>
__forceinline__ void cp_async(void* shared, const void* global) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  simt::async_copy(shared, global, kBytes);
}

__forceinline__ void cp_async_or_zeros(void* shared, const void* global, bool there) {
  if (there) {
    simt::async_copy(shared, global, 16);
  } else {
    simt::async_zeros(shared, 16);
  }
}

__forceinline__ void cp_async_commit() { simt::async_commit(); }
template <int kPending>
__forceinline__ void cp_async_wait() {
  static_assert(kPending >= 0);
  simt::async_wait(kPending);
}
__forceinline__ void cp_async_wait_all() { simt::async_wait_all(); }

}  // namespace ssc::cuda
