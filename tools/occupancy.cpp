// Resident warps per multiprocessor of this library's kernels, by NVIDIA's cuda_occupancy.h.
//
// A line of input per kernel: compute capability (80), registers, bytes of static shared memory,
// its tile ("MmaTile<bfloat16") or "-". A line of output: the warps. Built by tools/nvcc.py.
#include <cuda_occupancy.h>

#include <cstdio>
#include <iostream>
#include <map>
#include <string>

#include "csrc/cuda/device/grid.h"
#include "csrc/cuda/tile/loop.h"
#include "csrc/cuda/tile/tile.h"

namespace {

using namespace ssc::cuda;

constexpr int kThreads = 256;  // of all kernels
static_assert(kTileThreads == kThreads && kElementThreads == kThreads);

constexpr Order k = Order::along_k;  // all orders of a tile take as much
const std::map<std::string, int> kDynamicBytes = {
    {"-", 0},
    {"FmaTile<double", kPipelineBytes<FmaTile<double, k, k>>},
    {"FmaTile<float", kPipelineBytes<FmaTile<float, k, k>>},
    {"FmaTile<bfloat16", kPipelineBytes<FmaTile<__nv_bfloat16, k, k>>},
    {"FmaTile<float16", kPipelineBytes<FmaTile<__half, k, k>>},
    {"MmaTile<float", kPipelineBytes<MmaTile<float, k, k>>},
    {"MmaTile<bfloat16", kPipelineBytes<MmaTile<__nv_bfloat16, k, k>>},
    {"MmaTile<float16", kPipelineBytes<MmaTile<__half, k, k>>},
};

// CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
struct Limits {
  int threads;
  size_t shared, shared_per_block;  // bytes
};
const std::map<int, Limits> kLimits = {
    {75, {1024, 64 << 10, 64 << 10}},
    {80, {2048, 164 << 10, 163 << 10}},
    {90, {2048, 228 << 10, 227 << 10}},
    {120, {1536, 100 << 10, 99 << 10}},
};

int resident_warps(int capability, int registers, int static_bytes, const std::string& tile) {
  const Limits& limits = kLimits.at(capability);
  cudaOccDeviceProp device;
  device.computeMajor = capability / 10;
  device.computeMinor = capability % 10;
  device.maxThreadsPerBlock = 1024;
  device.maxThreadsPerMultiprocessor = limits.threads;
  device.regsPerBlock = device.regsPerMultiprocessor = 65536;
  device.warpSize = 32;
  device.sharedMemPerBlock = 48 << 10;
  device.sharedMemPerMultiprocessor = limits.shared;
  device.numSms = 1;
  device.sharedMemPerBlockOptin = limits.shared_per_block;
  device.reservedSharedMemPerBlock = capability >= 80 ? 1024 : 0;
  cudaOccFuncAttributes kernel;
  kernel.maxThreadsPerBlock = kThreads;
  kernel.numRegs = registers;
  kernel.sharedSizeBytes = static_cast<size_t>(static_bytes);
  kernel.numBlockBarriers = 1;
  kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  kernel.maxDynamicSharedSizeBytes = limits.shared_per_block - kernel.sharedSizeBytes;
  cudaOccDeviceState state;
  cudaOccResult result;
  const auto dynamic = static_cast<size_t>(kDynamicBytes.at(tile));
  const cudaOccError error =
      cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, kThreads, dynamic);
  return error == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor * kThreads / 32 : -1;
}

}  // namespace

int main() {
  int capability, registers, static_bytes;
  std::string tile;
  while (std::cin >> capability >> registers >> static_bytes >> tile) {
    std::printf("%d\n", resident_warps(capability, registers, static_bytes, tile));
  }
}
