// The architectures of the CUDA library, behind sampled_softmax_cuda.build_info().
#include <string>

#include "csrc/ops/cuda/device.h"

namespace ssc::ops::cuda {
namespace {

std::string cuda_architectures() { return compiled_architectures(); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sampled_softmax, CompositeExplicitAutograd, m) {
  m.impl("cuda_architectures", TORCH_BOX(&cuda_architectures));
}

}  // namespace ssc::ops::cuda
