#include "csrc/ops/cuda/device.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <atomic>
#include <sstream>
#include <string>

namespace ssc::ops::cuda {
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

int attribute(int32_t index, cudaDeviceAttr which) {
  int value;
  check_launch(ssc::cuda::returned(cudaDeviceGetAttribute(&value, which, index)),
               "attributes of the device");
  return value;
}

// find(index), a positive number that a device never changes: found out once for each.
template <class Find>
int known_of_device(int32_t index, Find find) {
  constexpr int32_t kDevices = 64;
  static std::atomic<int> known[kDevices];  // one array per Find; 0: not found out yet
  if (index < 0 || index >= kDevices) return find(index);
  int value = known[index].load(std::memory_order_relaxed);
  if (value == 0) known[index].store(value = find(index), std::memory_order_relaxed);
  return value;
}

}  // namespace

OnDevice::OnDevice(const Tensor& t)
    : index_(t.get_device_index()), guard_(index_), stream_(current_stream(index_)) {}

int OnDevice::multiprocessors() const {
  return known_of_device(
      index_, [](int32_t index) { return attribute(index, cudaDevAttrMultiProcessorCount); });
}

int OnDevice::capability_major() const {
  return known_of_device(index_, [](int32_t index) {
    return newest_compiled_major(attribute(index, cudaDevAttrComputeCapabilityMajor));
  });
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

bool OnDevice::host_can_read(const Tensor& t) const { return t.is_cpu(); }

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

}  // namespace ssc::ops::cuda
