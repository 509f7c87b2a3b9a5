// A matmul of float32 numbers as tf32: one warp per 16 x 8 tile, straight from global memory.
#include "csrc/cuda/device/mma.h"
#include "csrc/simt/registry.h"

namespace {

namespace cuda = ssc::cuda;

// c[rows, columns] = a[rows, depth] b[columns, depth]^T; a and b have rows of `pitch` numbers.
__global__ void tf32_kernel(const float* a, const float* b, float* c, int rows, int columns,
                            int depth, int pitch) {
  const int group = threadIdx.x / 4, pair = threadIdx.x % 4;
  const int row = 16 * blockIdx.x, column = 8 * blockIdx.y;
  const auto number = [&](const float* x, int r, int count, int k) {
    return cuda::to_tf32(r < count && k < depth ? x[r * pitch + k] : 0.0f);
  };
  float sums[4] = {};
  for (int k = 0; k < depth; k += 8) {
    uint32_t fa[4], fb[2];
    for (int i = 0; i < 4; ++i) {
      fa[i] = number(a, row + group + i % 2 * 8, rows, k + pair + i / 2 * 4);
    }
    for (int i = 0; i < 2; ++i) fb[i] = number(b, column + group, columns, k + pair + 4 * i);
    cuda::mma_tf32(sums, fa, fb);
  }
  for (int i = 0; i < 4; ++i) {
    const int r = row + group + i / 2 * 8, col = column + 2 * pair + i % 2;
    if (r < rows && col < columns) c[r * columns + col] = sums[i];
  }
}

}  // namespace

SSC_SIMT_LAUNCHER(
    "gemm_tf32",
    +[](const float* a, const float* b, float* c, int rows, int columns, int depth, int pitch) {
      return cuda::launch(tf32_kernel, dim3((rows + 15) / 16, (columns + 7) / 8), 32, 0, nullptr, a,
                          b, c, rows, columns, depth, pitch);
    });
