#include "csrc/simt/runtime.h"

#include <cstdlib>
#include <cstring>
#include <map>

#include "csrc/simt/checks.h"
#include "csrc/simt/executor.h"
#include "csrc/simt/report.h"
#include "csrc/simt/symbols.h"

namespace ssc::simt {
namespace {

constexpr size_t kPlainSharedLimit = 48 * 1024;  // without cudaFuncSetAttribute

cudaError_t last_error = cudaSuccess;
std::map<const void*, size_t> shared_limits;

// The limit of the dynamic part: static shared memory comes out of the same 48 KiB.
size_t shared_limit(const void* kernel) {
  const auto known = shared_limits.find(kernel);
  return known == shared_limits.end() ? kPlainSharedLimit - static_shared_bytes(kernel)
                                      : known->second;
}

bool refuse(const Call& call, const std::string& why) {
  report(Finding::configuration, call.kernel, "launch of ", kernel_name(call.kernel), ": ", why);
  return true;
}

}  // namespace

cudaError_t set_last_error(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t check_configuration(const Call& call, dim3 grid, dim3 block, size_t shared_bytes) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const uint64_t static_bytes = static_shared_bytes(call.kernel);
  bool refused = false;
  if (running.call != nullptr) {
    refused = refuse(call, "from inside a kernel");
  } else if (threads == 0 || threads > kMaxThreads || block.z > 64) {
    refused = refuse(call, std::to_string(threads) + " threads in a block, 1 to 1024 allowed");
  } else if (uint64_t{grid.x} * grid.y * grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 ||
             grid.z > 65535) {
    refused = refuse(call, "a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) +
                               " x " + std::to_string(grid.z) + " blocks");
  } else if (static_bytes + shared_bytes > running.options.shared_limit) {
    refused = refuse(call, std::to_string(static_bytes) + " + " + std::to_string(shared_bytes) +
                               " bytes of static and dynamic shared memory, " +
                               std::to_string(running.options.shared_limit) + " there");
  } else if (shared_bytes > shared_limit(call.kernel)) {
    refused =
        refuse(call, std::to_string(shared_bytes) + " bytes of dynamic shared memory, " +
                         std::to_string(shared_limit(call.kernel)) + " allowed beside " +
                         std::to_string(static_bytes) + " of static: see cudaFuncSetAttribute");
  }
  return refused ? cudaErrorInvalidValue : cudaSuccess;
}

void trap() {
  report(Finding::trap, __builtin_return_address(0), "__trap()");
  abort_launch();
}

}  // namespace ssc::simt

// The runtime's own declarations (cuda_runtime_api.h) make sure that the types are right. Streams
// are in order and everything is done when a call returns.
extern "C" {

cudaError_t cudaGetLastError() {
  const cudaError_t error = ssc::simt::last_error;
  ssc::simt::last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() { return ssc::simt::last_error; }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    default:
      return "another error";
  }
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<size_t>(value) + ssc::simt::static_shared_bytes(kernel) >
                       ssc::simt::running.options.shared_limit) {
    return ssc::simt::set_last_error(cudaErrorInvalidValue);
  }
  ssc::simt::shared_limits[kernel] = static_cast<size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

// A card of compute capability 8.0 with 108 multiprocessors.
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 108;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(ssc::simt::running.options.shared_limit);
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(ssc::simt::kPlainSharedLimit);
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 8;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
    case cudaDevAttrWarpSize:
      *value = 32;
      break;
    default:
      return ssc::simt::set_last_error(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  ssc::simt::checks_host_wrote(memory, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  std::memcpy(to, from, bytes);
  ssc::simt::checks_host_wrote(to, bytes);
  return cudaSuccess;
}

}  // extern "C"
