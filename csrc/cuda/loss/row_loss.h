// The softmax loss of a row from its parts.
#pragma once

#include "csrc/core/online_lse.h"
#include "csrc/cuda/device/number.h"

namespace ssc::cuda {

template <class A>
struct RowLoss {
  A loss, lse;
};

// log(exp z_t + Σ) − z_t from the side where nothing cancels. An infinite z_t gives NaN, as any
// other infinite logit does.
template <class A>
__device__ __forceinline__ RowLoss<A> row_loss(const OnlineLse<A>& all, A logit) {
  const A above = all.max - logit;
  if (above <= 0) {
    const A loss = row_log1p(all.sum * row_exp(above)) + (logit - logit);
    return {loss, logit + loss};
  }  // NaN too
  const A log_sum = row_log(all.sum + row_exp(-above));
  return {above + log_sum, all.max + log_sum};
}

}  // namespace ssc::cuda
