// Included by every kernel instead of CUDA's headers. nvcc sees CUDA itself; g++ with -DSSC_SIMT
// sees csrc/simt, which runs the same source on the CPU. A kernel is plain CUDA but for
//
//   launch(kernel, grid, block, shared_bytes, stream, args...), not kernel<<<...>>>(args...)
//   float* tile = dynamic_shared<float>();    not extern __shared__ float tile[];
//   __shared__ __align__(16) float tile[64];  not alignas
//   cp_async, ldmatrix, mma_bf16, fast_exp2   what has no C++ form: async_copy.h, mma.h, ...
//
// Host code that only calls launchers (csrc/ops) sees CUDA's types and the runtime.
#pragma once

#include "csrc/cuda/device/returned_error.h"

#if defined(SSC_SIMT)
#include "csrc/simt/cuda.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#if defined(__CUDACC__)
#include <tuple>

namespace ssc::cuda {

// The block's dynamic shared memory, aligned for the widest swizzle, 128 bytes.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char ssc_dynamic_shared_bytes[];
  return reinterpret_cast<T*>(ssc_dynamic_shared_bytes);
}

// Converts the arguments to the kernel's parameter types, launches, and returns the launch's error:
// no other's that the thread has kept, as cudaGetLastError after <<<>>> would.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, Arguments&&... arguments) {
  std::tuple<Parameters...> parameters{static_cast<Parameters>(arguments)...};
  return std::apply(
      [&](Parameters&... parameter) {
        void* pointers[] = {&parameter..., nullptr};
        return returned(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block,
                                         pointers, shared_bytes, stream));
      },
      parameters);
}

}  // namespace ssc::cuda
#endif
#endif
