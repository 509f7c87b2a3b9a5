// A kernel that needs nothing but threads: a grid-stride loop.
#include "csrc/cuda/device/device.h"
#include "csrc/simt/registry.h"

namespace {

__global__ void scale_kernel(float* x, int64_t n, float factor) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += stride) {
    x[i] *= factor;
  }
}

}  // namespace

SSC_SIMT_LAUNCHER(
    "scale", +[](float* x, int64_t n, float factor, int blocks, cudaStream_t stream) {
      return ssc::cuda::launch(scale_kernel, blocks, 128, 0, stream, x, n, factor);
    });
