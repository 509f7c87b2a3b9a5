// What this build is and which code it runs: behind sampled_softmax_cuda.build_info().
#include <string>

#include "csrc/cpu/isa.h"
#include "csrc/ops/stable_compat.h"

namespace ssc::ops {
namespace {

std::string cpu_isa() { return isa_name(active_isa()); }

}  // namespace

// An operator without tensor arguments has no device to be dispatched on.
STABLE_TORCH_LIBRARY_IMPL(sampled_softmax, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
}

}  // namespace ssc::ops
