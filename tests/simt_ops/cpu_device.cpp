// The twin of csrc/ops/cuda_device.cpp: the CPU's memory stands for a GPU's, csrc/simt runs
// kernels.
#include "csrc/ops/cuda_device.h"

namespace ssc::ops {

OnDevice::OnDevice(const Tensor&) : index_(0), stream_(nullptr) {}

int OnDevice::multiprocessors() const { return 4; }
int OnDevice::capability_major() const { return 8; }

Tensor OnDevice::empty(std::initializer_list<int64_t> sizes, ScalarType dtype) const {
  return empty_cpu(sizes, dtype);
}

Tensor OnDevice::empty_like(const Tensor& t, ScalarType dtype) const {
  const auto sizes = t.sizes();
  return empty_cpu(sizes.data(), static_cast<int64_t>(sizes.size()), dtype);
}

void OnDevice::check_here(const Tensor& t, const char* name) const {
  STD_TORCH_CHECK(t.is_cpu(), name, " must be on the CPU");
}

void check_launch(cudaError_t error, const char* stage) {
  STD_TORCH_CHECK(error == cudaSuccess, stage, ": cudaError ", static_cast<int>(error));
}

}  // namespace ssc::ops
