// Launching: runs the whole grid before it returns.
#pragma once

#include <cuda_runtime.h>

#include <tuple>
#include <utility>

#include "csrc/cuda/device/returned_error.h"
#include "csrc/simt/language.h"

namespace ssc::simt {

// A kernel with its arguments, its types erased.
struct Call {
  const void* kernel;  // the function's address, which names it
  void (*run)(const void* arguments);
  const void* arguments;
  size_t argument_bytes;  // kernels may read these: they stand for the constant bank
};

cudaError_t launch(const Call& call, dim3 grid, dim3 block, size_t shared_bytes);

}  // namespace ssc::simt

namespace ssc::cuda {

// Exactly as large as the launch asks for.
template <class T>
T* dynamic_shared() {
  return static_cast<T*>(simt::dynamic_shared());
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t /*stream*/, Arguments&&... arguments) {
  struct Bound {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> parameters;
  };
  const Bound bound{kernel, {static_cast<Parameters>(std::forward<Arguments>(arguments))...}};
  const auto run = [](const void* memory) {
    const Bound& b = *static_cast<const Bound*>(memory);
    std::apply(b.kernel, b.parameters);
  };
  return returned(simt::launch({reinterpret_cast<const void*>(kernel), run, &bound, sizeof(bound)},
                               grid, block, shared_bytes));
}

}  // namespace ssc::cuda

// cuda_runtime.h has this overload under nvcc alone.
template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute,
                                 int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
