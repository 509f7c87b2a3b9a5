// Losses against negatives of which every row has its own, on the GPU, as in csrc/ops/cpu.
#pragma once

#include <tuple>

#include "csrc/ops/cuda/arguments.h"
#include "csrc/ops/groups.h"

namespace ssc::ops::cuda {

using LossAndPeak = std::tuple<Tensor, Tensor>;
// Those of input, weight and bias, and the classes of their rows.
using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor>;

LossAndPeak per_row_rows(const Operands& operands, const Rows& rows, const Source& source,
                         const Sum& sum);

Grads per_row_grads(const Operands& operands, const Rows& rows, const Source& source,
                    const Sum& sum, const Tensor& row_scale, bool sparse_grad);

}  // namespace ssc::ops::cuda
