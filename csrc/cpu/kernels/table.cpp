// This instruction set's stages as a table for csrc/cpu/loss/forward.cpp and loss/step.cpp.
#include "csrc/cpu/kernels/stages.h"

namespace ssc::SSC_ISA {

template <class T>
const LossKernels<T>& loss_table() {
  static constexpr LossKernels<T> table = {
      kLanes<T>,          kPanel<T>,       kBlockRows,  kWord<T> / kParts, kUnit<T>,
      &pack_rows<T>,      &dot<T>,         &sweep<T>,   &reduce_row<T>,    &finish_row<T>,
      &pack_grad_rows<T>, &weight_grad<T>, &add_row<T>, &convert<T>,       &logits<T>,
  };
  return table;
}

template const LossKernels<float>& loss_table();
#if !defined(SSC_BF16_PAIRS)
template const LossKernels<double>& loss_table();
#endif

}  // namespace ssc::SSC_ISA
