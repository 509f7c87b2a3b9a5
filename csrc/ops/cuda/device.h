// The device of the CUDA operators: memory, stream and properties, from torch and from the CUDA
// runtime. Nothing here waits for the device, and memory comes from torch's allocator, so operators
// can be captured in a CUDA graph.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <cstdint>
#include <initializer_list>
#include <optional>

#include "csrc/cuda/device/device.h"
#include "csrc/ops/stable.h"

// The dispatch key of the operators; tests/simt_ops has another.
#if !defined(SSC_CUDA_KEY)
#define SSC_CUDA_KEY CUDA
#endif

namespace ssc::ops::cuda {

// The device of an operator's arguments, current while this object lives, and torch's current
// stream on it.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& t);

  int32_t index() const { return index_; }
  cudaStream_t stream() const { return stream_; }
  int multiprocessors() const;
  int capability_major() const;  // of the compute capability that kernels run as

  // On this device: contiguous, not initialised.
  Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype) const;
  Tensor empty_like(const Tensor& t, ScalarType dtype) const;

  // Everything that a kernel gets a pointer to has passed this.
  void check_here(const Tensor& t, const char* name) const;
  void check_here(const std::optional<Tensor>& t, const char* name) const {
    if (t.has_value()) check_here(*t, name);
  }

  // Whether the host may look at what `t` holds: then kernels get it by value, else a pointer.
  bool host_can_read(const Tensor& t) const;

 private:
  int32_t index_;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;  // none in tests/simt_ops
  cudaStream_t stream_;
};

// RuntimeError unless the launches of `stage` were accepted.
void check_launch(cudaError_t error, const char* stage);

// The architectures of this library's kernels, such as "8.0 9.0+PTX".
const char* compiled_architectures();

}  // namespace ssc::ops::cuda
