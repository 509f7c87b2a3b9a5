// This instruction set's stages as a table for csrc/cpu/loss_rows.cpp and loss_grads.cpp.
#include "csrc/cpu/loss_stages.h"

namespace ssc::SSC_ISA {

template <class T>
const LossLeaf<T>& loss_table() {
  static constexpr LossLeaf<T> table = {
      kLanes<T>,       kPanel<T>,   kTileRows,      kWord<T>,       &pack_rows<T>,
      &dot<T>,         &sweep<T>,   &reduce_row<T>, &finish_row<T>, &pack_grad_row<T>,
      &weight_grad<T>, &add_row<T>, &convert<T>,    &logits<T>,
  };
  return table;
}

template const LossLeaf<float>& loss_table();
#if !defined(SSC_BF16_PAIRS)
template const LossLeaf<double>& loss_table();
#endif

}  // namespace ssc::SSC_ISA
