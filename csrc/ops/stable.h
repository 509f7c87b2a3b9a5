// Everything that csrc/ops takes from torch, through libtorch's stable ABI, and what is worked
// around in it. The other files of csrc/ops include this one and no torch header of their own.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>

#include "csrc/cpu/base/parallel.h"

namespace ssc::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// torch's threads as csrc/cpu takes them, so that torch.set_num_threads holds.
inline ParallelFor torch_parallel_for() {
  return {[](int64_t n, int64_t grain, ParallelFor::Body body, void* context) {
            torch::stable::parallel_for(0, n, grain, [body, context](int64_t begin, int64_t end) {
              body(context, begin, end);
            });
          },
          static_cast<int>(torch::stable::get_num_threads())};
}

// A contiguous tensor of `dim` dimensions, not initialised, by the allocator: the dispatcher's
// new_empty takes two microseconds more, and a small step is all overhead.
inline Tensor empty_on(int32_t device_type, int32_t device_index, const int64_t* sizes, int64_t dim,
                       ScalarType dtype) {
  constexpr int64_t kMaxDim = 64;  // torch's own limit
  STD_TORCH_CHECK(dim <= kMaxDim, "at most ", kMaxDim, " dimensions, got ", dim);
  int64_t strides[kMaxDim];
  int64_t stride = 1;
  for (int64_t d = dim - 1; d >= 0; --d) {
    strides[d] = stride;
    stride *= sizes[d] > 1 ? sizes[d] : 1;
  }
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      dim, sizes, strides, torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      device_type, device_index, &handle));
  return Tensor(handle);
}

inline Tensor empty_cpu(const int64_t* sizes, int64_t dim, ScalarType dtype) {
  return empty_on(aoti_torch_device_type_cpu(), 0, sizes, dim, dtype);
}

inline Tensor empty_cpu(std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return empty_cpu(sizes.begin(), static_cast<int64_t>(sizes.size()), dtype);
}

}  // namespace ssc::ops
