// Sizes of grids, and what a launch needs beside them.
#pragma once

#include <cstdint>

#include "csrc/cuda/device/device.h"

namespace ssc::cuda {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks for one thread per element, up to what fills the largest GPU several times over: kernels
// stride over the rest.
constexpr int kElementThreads = 256;
constexpr unsigned element_blocks(int64_t elements) {
  constexpr int64_t kMost = 2048;
  const int64_t blocks = ceil_div(elements, kElementThreads);
  return static_cast<unsigned>(blocks < kMost ? blocks : kMost);
}

// Blocks along a row of n elements.
constexpr unsigned row_blocks(int64_t n) {
  const int64_t blocks = ceil_div(n, 4 * kElementThreads);
  return static_cast<unsigned>(blocks < 64 ? (blocks > 0 ? blocks : 1) : 64);
}

// More than 48 KiB of shared memory has to be asked for, static memory counted in.
template <class Kernel>
cudaError_t allow_shared(Kernel kernel, int dynamic_bytes, int static_bytes) {
  if (dynamic_bytes + static_bytes <= 48 * 1024) return cudaSuccess;
  return returned(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic_bytes));
}

}  // namespace ssc::cuda
