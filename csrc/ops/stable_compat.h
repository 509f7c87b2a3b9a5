// Everything that csrc/ops takes from torch, through libtorch's stable ABI, and what is worked
// around in it. The other files of csrc/ops include this one and no torch header of their own.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

#include "csrc/cpu/parallel.h"

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

}  // namespace ssc::ops
