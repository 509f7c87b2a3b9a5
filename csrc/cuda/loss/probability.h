// An element of P in the form in which the products take it.
#pragma once

#include <type_traits>

#include "csrc/cuda/device/mma.h"
#include "csrc/cuda/device/number.h"
#include "csrc/cuda/loss/gradients.h"

namespace ssc::cuda {

// Of floats for tensor cores rounded to tf32: here once, there for each fragment that has it.
template <class T>
__device__ __forceinline__ T to_probability(const GradChunk<T>& chunk,
                                            typename GradChunk<T>::A value) {
  if constexpr (std::is_same_v<T, float>) {
    if (chunk.path == MatmulPath::tensor_cores) return __uint_as_float(to_tf32(value));
  }
  return to_storage<T>(value);
}

}  // namespace ssc::cuda
