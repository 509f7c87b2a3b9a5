// The build's instruction sets, behind sampled_softmax_cuda.build_info().
#include <string>
#include <tuple>
#include <utility>

#include "csrc/cpu/loss/table.h"
#include "csrc/ops/stable.h"

namespace ssc::ops::cpu {
namespace {

// A line "dtype instruction-set" for H and W of each dtype.
std::string by_dtype() {
  constexpr std::pair<const char*, DType> kDTypes[] = {{"float32", DType::f32},
                                                       {"bfloat16", DType::bf16},
                                                       {"float16", DType::f16},
                                                       {"float64", DType::f64}};
  std::string lines;
  for (const auto& [name, dtype] : kDTypes) {
    lines += std::string(name) + ' ' +
             isa_name(kernels_isa(active_isa(), dtype, dtype, Products::ieee)) + '\n';
  }
  return lines;
}

// Name, those by dtype, and why.
std::tuple<std::string, std::string, std::string> cpu_isa() {
  return {isa_name(active_isa()), by_dtype(), isa_choice().reason};
}

}  // namespace

// An operator without tensor arguments has no device to be dispatched on.
STABLE_TORCH_LIBRARY_IMPL(sampled_softmax, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
}

}  // namespace ssc::ops::cpu
