// Advice about a parameter's memory.
#include "csrc/cpu/base/huge_pages.h"
#include "csrc/ops/stable.h"

namespace ssc::ops::cpu {
namespace {

void advise_huge_pages_cpu(const Tensor& t) {
  if (!t.is_contiguous() || t.numel() == 0) return;
  advise_huge_pages(t.data_ptr(), static_cast<size_t>(t.numel()) * t.element_size());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sampled_softmax, CPU, m) {
  m.impl("advise_huge_pages", TORCH_BOX(&advise_huge_pages_cpu));
}

}  // namespace ssc::ops::cpu
