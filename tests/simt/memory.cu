// Where kernels read and write: mistakes, and what accesses cost.
#include <cstring>

#include "csrc/cuda/device/async_copy.h"
#include "csrc/cuda/device/device.h"
#include "csrc/cuda/device/mma.h"
#include "csrc/cuda/device/vector_access.h"
#include "csrc/simt/registry.h"

namespace {

namespace cuda = ssc::cuda;

// Offsets that move an access by so many elements.
__global__ void global_kernel(const float* x, float* y, int read, int write) {
  const int t = threadIdx.x;
  y[t + write] = x[t + read];
}

__global__ void dynamic_kernel(float* y, int offset) {
  float* tile = cuda::dynamic_shared<float>();
  tile[static_cast<int>(threadIdx.x) + offset] = static_cast<float>(threadIdx.x);
  __syncthreads();
  if (threadIdx.x == 0) y[0] = tile[1];
}

// The neighbours keep an index that runs out of `tile` from leaving all shared memory.
__global__ void static_kernel(float* y, int offset) {
  __shared__ float before[32];
  __shared__ float tile[32];
  __shared__ float behind[32];
  before[threadIdx.x] = behind[threadIdx.x] = 0;
  tile[static_cast<int>(threadIdx.x) + offset] = static_cast<float>(threadIdx.x);
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x] + before[threadIdx.x] + behind[threadIdx.x];
}

// Sums a tile of 33 of which 32 were written.
__global__ void uninitialised_shared_kernel(float* y, int count) {
  __shared__ float tile[33];
  tile[threadIdx.x] = 1;
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < count; ++i) sum += tile[i];
  y[threadIdx.x] = sum;
}

__global__ void vector_kernel(const float* x, float* y, int read, int write) {
  const float4 v = cuda::load_vector<float4>(x + 4 * static_cast<int>(threadIdx.x) + read);
  cuda::store_vector(y + 4 * static_cast<int>(threadIdx.x) + write, v);
}

// Copies n bytes by a call of memcpy, whose length the compiler does not know.
__global__ void memcpy_kernel(const char* x, char* y, int n) { memcpy(y, x, n); }

__global__ void local_kernel(const int* x, int* y, int n) {
  int local[64];
  for (int i = 0; i < n; ++i) local[i] = x[(i + threadIdx.x) % n];
  unsigned sum = 0;
  for (int i = n - 1; i >= 0; --i) sum = 3 * sum + static_cast<unsigned>(local[i]);
  y[threadIdx.x] = static_cast<int>(sum);
}

__global__ void trap_kernel(const int* x) {
  if (x[0] != 0) __trap();
}

// out = in^T for 32 x 32 tiles; a row of the tile has kPitch numbers.
template <int kPitch>
__global__ void transpose_kernel(const float* in, float* out, int n) {
  __shared__ float tile[32][kPitch];
  const int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 32;
  for (int r = threadIdx.y; r < 32; r += blockDim.y) tile[r][threadIdx.x] = in[(y + r) * n + x];
  __syncthreads();
  const int tx = blockIdx.y * 32 + threadIdx.x, ty = blockIdx.x * 32;
  for (int r = threadIdx.y; r < 32; r += blockDim.y) out[(ty + r) * n + tx] = tile[threadIdx.x][r];
}

// Row i of y is row ids[i] of x, rows of `pitch` floats; a warp per row, 16 bytes per lane.
__global__ void gather_kernel(const float* x, const int64_t* ids, float* y, int rows, int pitch) {
  const int row = blockIdx.x * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  const float* from = x + ids[row] * pitch;
  for (int i = 4 * threadIdx.x; i < pitch; i += 4 * 32) {
    cuda::store16_streaming(y + int64_t{row} * pitch + i, cuda::load16_cached(from + i));
  }
}

// One load per stride, width and pattern, from global and from shared memory.
template <class T>
__global__ void strided_kernel(const T* x, T* y, int stride) {
  T* tile = cuda::dynamic_shared<T>();
  for (int i = threadIdx.x; i < 32 * stride; i += 32) {
    tile[i] = x[i];
  }
  __syncwarp();
  const T from_global = x[threadIdx.x * stride];
  const T from_shared = tile[threadIdx.x * stride];
  y[threadIdx.x] = from_global;
  y[32 + threadIdx.x] = from_shared;
}

// Eight-by-eight matrices whose rows are `pitch` halves apart.
__global__ void ldmatrix_kernel(const __half* x, uint32_t* y, int pitch, int transposed) {
  __half* tile = cuda::dynamic_shared<__half>();
  for (int i = threadIdx.x; i < 32 * pitch; i += 32) tile[i] = x[i];
  __syncwarp();
  uint32_t out[4];
  if (transposed) {
    cuda::ldmatrix_trans(out, tile + threadIdx.x * pitch);
  } else {
    cuda::ldmatrix(out, tile + threadIdx.x * pitch);
  }
  for (int m = 0; m < 4; ++m) y[32 * m + threadIdx.x] = out[m];
}

// cp.async of 4, 8 and 16 bytes, and plain zeros for every third.
template <int kBytes>
__global__ void or_zero_kernel(const char* x, char* y) {
  __shared__ __align__(16) char tile[32][kBytes];
  if (threadIdx.x % 3 != 0) {
    cuda::cp_async<kBytes>(tile[threadIdx.x], x + kBytes * threadIdx.x);
  } else {
    for (int i = 0; i < kBytes; ++i) tile[threadIdx.x][i] = 0;
  }
  cuda::cp_async_wait_all();
  for (int i = 0; i < kBytes; ++i) y[kBytes * threadIdx.x + i] = tile[threadIdx.x][i];
}

template <int kBytes>
cudaError_t launch_or_zero(const char* x, char* y) {
  return cuda::launch(or_zero_kernel<kBytes>, 1, 32, 0, nullptr, x, y);
}
template <int kPitch>
cudaError_t launch_transpose(const float* in, float* out, int n) {
  return cuda::launch(transpose_kernel<kPitch>, dim3(n / 32, n / 32), dim3(32, 8), 0, nullptr, in,
                      out, n);
}
template <class T>
cudaError_t launch_strided(const T* x, T* y, int stride) {
  return cuda::launch(strided_kernel<T>, 1, 32, 32 * stride * sizeof(T), nullptr, x, y, stride);
}

}  // namespace

SSC_SIMT_LAUNCHER(
    "global", +[](const float* x, float* y, int threads, int read, int write) {
      return cuda::launch(global_kernel, 1, threads, 0, nullptr, x, y, read, write);
    });
SSC_SIMT_LAUNCHER(
    "dynamic", +[](float* y, int offset) {
      return cuda::launch(dynamic_kernel, 1, 32, 32 * sizeof(float), nullptr, y, offset);
    });
SSC_SIMT_LAUNCHER(
    "static", +[](float* y, int offset) {
      return cuda::launch(static_kernel, 1, 32, 0, nullptr, y, offset);
    });
SSC_SIMT_LAUNCHER(
    "uninitialised_shared", +[](float* y, int count) {
      return cuda::launch(uninitialised_shared_kernel, 1, 32, 0, nullptr, y, count);
    });
SSC_SIMT_LAUNCHER(
    "vector", +[](const float* x, float* y, int threads, int read, int write) {
      return cuda::launch(vector_kernel, 1, threads, 0, nullptr, x, y, read, write);
    });
SSC_SIMT_LAUNCHER(
    "memcpy", +[](const char* x, char* y, int n) {
      return cuda::launch(memcpy_kernel, 1, 1, 0, nullptr, x, y, n);
    });
SSC_SIMT_LAUNCHER(
    "local", +[](const int* x, int* y, int n) {
      return cuda::launch(local_kernel, 1, 32, 0, nullptr, x, y, n);
    });
SSC_SIMT_LAUNCHER(
    "trap", +[](const int* x) { return cuda::launch(trap_kernel, 1, 32, 0, nullptr, x); });
SSC_SIMT_LAUNCHER("transpose", launch_transpose<33>);
SSC_SIMT_LAUNCHER("transpose_unpadded", launch_transpose<32>);
SSC_SIMT_LAUNCHER(
    "gather", +[](const float* x, const int64_t* ids, float* y, int rows, int pitch) {
      return cuda::launch(gather_kernel, (rows + 3) / 4, dim3(32, 4), 0, nullptr, x, ids, y, rows,
                          pitch);
    });
SSC_SIMT_LAUNCHER("strided_2", launch_strided<__half>);
SSC_SIMT_LAUNCHER("strided_4", launch_strided<float>);
SSC_SIMT_LAUNCHER("strided_8", launch_strided<double>);
SSC_SIMT_LAUNCHER("strided_16", launch_strided<float4>);
SSC_SIMT_LAUNCHER(
    "ldmatrix", +[](const __half* x, uint32_t* y, int pitch, int transposed) {
      return cuda::launch(ldmatrix_kernel, 1, 32, 32 * pitch * sizeof(__half), nullptr, x, y, pitch,
                          transposed);
    });
SSC_SIMT_LAUNCHER("or_zero_4", launch_or_zero<4>);
SSC_SIMT_LAUNCHER("or_zero_8", launch_or_zero<8>);
SSC_SIMT_LAUNCHER("or_zero_16", launch_or_zero<16>);
