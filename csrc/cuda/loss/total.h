// The losses of a batch as one number, Σ_i k_i loss_i, without waiting for the device.
#pragma once

#include <cstdint>

#include "csrc/cuda/device/device.h"

namespace ssc::cuda {

// factors[i] = k, i < batch: 1 over the number of rows that count (1 if none does) if `mean`, else
// 1. The losses of rows that don't count are 0.
template <class A>
cudaError_t row_factors(const int64_t* target, int64_t batch, int64_t ignore_index, bool mean,
                        A* factors, cudaStream_t stream);

// *total = Σ_i factors[i] loss[i], added up in double and in an order that only `batch` decides.
template <class A>
cudaError_t total_loss(const A* factors, const A* loss, int64_t batch, A* total,
                       cudaStream_t stream);

}  // namespace ssc::cuda
