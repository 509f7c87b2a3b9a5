// By which units the matmuls of a step are computed: chosen on the host, for all of them.
#pragma once

namespace ssc::cuda {

enum class MatmulPath { fma, tensor_cores };

// For storage type T and code of compute capability `major`.x: that of the GPU, unless the build
// has only an older one's code for it. Tensor cores take bfloat16 and float16 exactly, from 8.0 on;
// float32 they round to tf32, which has to be allowed; float64 is not for them.
template <class T>
constexpr MatmulPath matmul_path(int major, bool allow_tf32) {
  const bool wanted = sizeof(T) == 2 || (sizeof(T) == 4 && allow_tf32);
  return wanted && major >= 8 ? MatmulPath::tensor_cores : MatmulPath::fma;
}

}  // namespace ssc::cuda
