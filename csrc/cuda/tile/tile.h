// The tile of a matmul: by tensor cores (tile/tensor_core.h) or fused multiply-adds (tile/fma.h).
#pragma once

#include <type_traits>

#include "csrc/cuda/tile/fma.h"
#include "csrc/cuda/tile/path.h"
#include "csrc/cuda/tile/tensor_core.h"

namespace ssc::cuda {

// Calls f with the tile of a storage type and a path, as a std::type_identity.
template <class T, Order kA, Order kB, class F>
cudaError_t with_tile(MatmulPath path, F&& f) {
  if constexpr (sizeof(T) <= 4) {
    if (path == MatmulPath::tensor_cores) return f(std::type_identity<MmaTile<T, kA, kB>>{});
  }
  return f(std::type_identity<FmaTile<T, kA, kB>>{});
}

// Whether matmul_path ever chooses the tile on the architecture that is being compiled for. The
// kernels of those that it does not stay empty: nvcc would take as long for them as for the others.
template <class Tile>
__device__ constexpr bool runs_here() {
#if defined(__CUDA_ARCH__)
  constexpr bool kTensorCores = __CUDA_ARCH__ >= 800;
  return Tile::kTensorCores ? kTensorCores : !kTensorCores || sizeof(typename Tile::Element) > 2;
#else
  return true;
#endif
}

}  // namespace ssc::cuda
