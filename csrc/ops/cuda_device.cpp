#include "csrc/ops/cuda_device.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <atomic>
#include <sstream>
#include <string>

namespace ssc::ops {
namespace {

int32_t device_type_of(const Tensor& t) {
  int32_t type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
  return type;
}

cudaStream_t current_stream(int32_t index) {
  void* stream;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
  return static_cast<cudaStream_t>(stream);
}

// A number that the runtime knows of each device, asked for once.
template <cudaDeviceAttr kAttribute>
int device_attribute(int32_t index) {
  constexpr int32_t kDevices = 64;
  static std::atomic<int> known[kDevices];  // 0: not asked yet
  const bool kept = index >= 0 && index < kDevices;
  int value = kept ? known[index].load(std::memory_order_relaxed) : 0;
  if (value == 0) {
    check_launch(cudaDeviceGetAttribute(&value, kAttribute, index), "attributes of the device");
    if (kept) known[index].store(value, std::memory_order_relaxed);
  }
  return value;
}

// The major number of the code that a GPU of `device_major` runs: an older one's, by way of PTX,
// where the library has none of its own.
int newest_compiled_major(int device_major) {
  int newest = 0;
  std::istringstream architectures(compiled_architectures());
  for (std::string name; architectures >> name;) {
    const int major = std::stoi(name);  // of "9.0+PTX": 9
    if (major <= device_major) newest = std::max(newest, major);
  }
  return newest;
}

}  // namespace

OnDevice::OnDevice(const Tensor& t)
    : index_(t.get_device_index()), guard_(index_), stream_(current_stream(index_)) {}

int OnDevice::multiprocessors() const {
  return device_attribute<cudaDevAttrMultiProcessorCount>(index_);
}

int OnDevice::capability_major() const {
  return newest_compiled_major(device_attribute<cudaDevAttrComputeCapabilityMajor>(index_));
}

Tensor OnDevice::empty(std::initializer_list<int64_t> sizes, ScalarType dtype) const {
  return empty_on(aoti_torch_device_type_cuda(), index_, sizes.begin(),
                  static_cast<int64_t>(sizes.size()), dtype);
}

Tensor OnDevice::empty_like(const Tensor& t, ScalarType dtype) const {
  const auto sizes = t.sizes();
  return empty_on(aoti_torch_device_type_cuda(), index_, sizes.data(),
                  static_cast<int64_t>(sizes.size()), dtype);
}

void OnDevice::check_here(const Tensor& t, const char* name) const {
  STD_TORCH_CHECK(
      device_type_of(t) == aoti_torch_device_type_cuda() && t.get_device_index() == index_, name,
      " must be on cuda:", index_, " as the other arguments are");
}

void check_launch(cudaError_t error, const char* stage) {
  if (error == cudaSuccess) return;
  const bool not_compiled_for =
      error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion;
  const std::string advice =
      not_compiled_for ? std::string("; _C_cuda.so was compiled for ") + compiled_architectures() +
                             ": install again with TORCH_CUDA_ARCH_LIST set to this GPU's"
                       : "";
  STD_TORCH_CHECK(false, "sampled_softmax, ", stage, ": ", cudaGetErrorString(error), advice);
}

const char* compiled_architectures() { return SSC_CUDA_ARCHITECTURES; }

}  // namespace ssc::ops
