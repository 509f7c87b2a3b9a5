// A matmul as the real kernels will do it: cp.async double buffering, ldmatrix, mma.sync. Small,
// but with every part that can be forgotten; a mutation leaves one out.
#include <type_traits>

#include "csrc/cuda/device/async_copy.h"
#include "csrc/cuda/device/mma.h"
#include "csrc/simt/registry.h"

namespace {

namespace cuda = ssc::cuda;

enum Mutation { kNone, kNoWait, kNoBarrierAfterWait, kNoBarrierBeforeReuse, kNoPadding };

constexpr int kWarps = 4, kRows = 16 * kWarps, kColumns = 32, kDepth = 32, kStages = 2;

// A row of the tile is 64 bytes; with 16 more, the eight rows of an ldmatrix lie in distinct banks.
template <int kMutation>
constexpr int kPitch = kMutation == kNoPadding ? kDepth : kDepth + 8;

template <class T, int kMutation>
struct Stage {
  T a[kRows][kPitch<kMutation>];
  T b[kColumns][kPitch<kMutation>];
};

// Copies rows [row, row + kRows) x columns [k, k + kDepth) of x; what lies outside becomes zero.
template <int kTileRows, int kPitchOf, class T>
__device__ void copy_tile(T (*tile)[kPitchOf], const T* x, int row, int rows, int k, int depth,
                          int pitch) {
  constexpr int kPerRow = kDepth / 8;
  for (int chunk = threadIdx.x; chunk < kTileRows * kPerRow; chunk += blockDim.x) {
    const int r = chunk / kPerRow, c = chunk % kPerRow * 8;
    const int left = row + r < rows ? min(max(depth - k - c, 0), 8) : 0;
    const T* const from = x + int64_t{row + r} * pitch + k + c;
    if (left == 8) {
      cuda::cp_async<16>(&tile[r][c], from);
    } else {
      for (int e = 0; e < 8; ++e) tile[r][c + e] = e < left ? from[e] : T{};
    }
  }
}

// c[rows, columns] = a[rows, depth] b[columns, depth]^T; a and b have rows of `pitch` numbers.
template <class T, int kMutation>
__global__ void __launch_bounds__(32 * kWarps)
    gemm_kernel(const T* a, const T* b, float* c, int rows, int columns, int depth, int pitch) {
  Stage<T, kMutation>* stages = cuda::dynamic_shared<Stage<T, kMutation>>();
  constexpr int kPitchOf = kPitch<kMutation>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row = blockIdx.x * kRows, column = blockIdx.y * kColumns;
  const int steps = (depth + kDepth - 1) / kDepth;
  float sums[kColumns / 8][4] = {};

  const auto prefetch = [&](int step) {
    if (step < steps) {
      Stage<T, kMutation>& stage = stages[step % kStages];
      copy_tile<kRows, kPitchOf>(stage.a, a, row, rows, step * kDepth, depth, pitch);
      copy_tile<kColumns, kPitchOf>(stage.b, b, column, columns, step * kDepth, depth, pitch);
    }
    cuda::cp_async_commit();
  };
  prefetch(0);
  for (int step = 0; step < steps; ++step) {
    prefetch(step + 1);
    if constexpr (kMutation != kNoWait) cuda::cp_async_wait<1>();
    if constexpr (kMutation != kNoBarrierAfterWait) __syncthreads();
    const Stage<T, kMutation>& stage = stages[step % kStages];
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t fa[4];
      cuda::ldmatrix(fa, &stage.a[16 * warp + lane % 16][k + lane / 16 * 8]);
      for (int n = 0; n < kColumns; n += 16) {
        uint32_t fb[4];
        cuda::ldmatrix(fb, &stage.b[n + lane % 8 + lane / 16 * 8][k + lane / 8 % 2 * 8]);
        for (int half = 0; half < 2; ++half) {
          const uint32_t pair[2] = {fb[2 * half], fb[2 * half + 1]};
          if constexpr (std::is_same_v<T, __half>) {
            cuda::mma_f16(sums[n / 8 + half], fa, pair);
          } else {
            cuda::mma_bf16(sums[n / 8 + half], fa, pair);
          }
        }
      }
    }
    // The next prefetch overwrites this stage.
    if constexpr (kMutation != kNoBarrierBeforeReuse) __syncthreads();
  }
  for (int n = 0; n < kColumns / 8; ++n) {
    for (int i = 0; i < 4; ++i) {
      const int r = row + 16 * warp + lane / 4 + i / 2 * 8;
      const int col = column + 8 * n + lane % 4 * 2 + i % 2;
      if (r < rows && col < columns) c[int64_t{r} * columns + col] = sums[n][i];
    }
  }
}

template <class T, int kMutation = kNone>
cudaError_t launch_gemm(const T* a, const T* b, float* c, int rows, int columns, int depth,
                        int pitch, cudaStream_t stream) {
  const dim3 grid((rows + kRows - 1) / kRows, (columns + kColumns - 1) / kColumns);
  return cuda::launch(gemm_kernel<T, kMutation>, grid, 32 * kWarps,
                      kStages * sizeof(Stage<T, kMutation>), stream, a, b, c, rows, columns, depth,
                      pitch);
}

}  // namespace

SSC_SIMT_LAUNCHER("gemm_f16", launch_gemm<__half>);
SSC_SIMT_LAUNCHER("gemm_bf16", launch_gemm<__nv_bfloat16>);
SSC_SIMT_LAUNCHER("gemm_no_wait", launch_gemm<__nv_bfloat16, kNoWait>);
SSC_SIMT_LAUNCHER("gemm_no_barrier_after_wait", launch_gemm<__nv_bfloat16, kNoBarrierAfterWait>);
SSC_SIMT_LAUNCHER("gemm_no_barrier_before_reuse",
                  launch_gemm<__nv_bfloat16, kNoBarrierBeforeReuse>);
SSC_SIMT_LAUNCHER("gemm_no_padding", launch_gemm<__nv_bfloat16, kNoPadding>);
