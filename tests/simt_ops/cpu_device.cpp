// The twin of csrc/ops/cuda/device.cpp: the CPU's memory stands for a GPU's, and an executor runs
// the kernels, csrc/simt or one of PTX (tests/ptx).
#include <cstdlib>
#include <string_view>

#include "csrc/ops/cuda/device.h"
#include "tests/simt_ops/findings.h"

namespace ssc::ops::cuda {

OnDevice::OnDevice(const Tensor&) : index_(0), stream_(nullptr) {}

int OnDevice::multiprocessors() const { return 4; }

int OnDevice::capability_major() const {
  int major;
  check_launch(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0),
               "attributes of the device");
  return major;
}

// Every tensor stands for one in a GPU's memory, unless a test has it otherwise.
bool OnDevice::host_can_read(const Tensor&) const {
  const char* const where = std::getenv("SSC_SIMT_NUMBERS");
  return where != nullptr && std::string_view(where) == "host";
}

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
  const std::string findings = take_findings();
  STD_TORCH_CHECK(error == cudaSuccess && findings.empty(), stage, ": cudaError ",
                  static_cast<int>(error), findings);
}

}  // namespace ssc::ops::cuda
