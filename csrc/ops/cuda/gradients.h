// The gradients of a sweep on the GPU, and the sorted classes by which those of W are added up.
#pragma once

#include "csrc/cuda/loss/class_list.h"
#include "csrc/cuda/loss/step.h"
#include "csrc/ops/cuda/arguments.h"

namespace ssc::ops::cuda {

// [S + B] each. Without targets: [S].
struct ClassOrder {
  ClassOrder(const Operands& p, const Tensor& ids, const std::optional<Tensor>& target,
             int64_t ignore_index)
      : count(ids.numel() + (target.has_value() ? target->numel() : 0)),
        classes(p.device.empty({count}, ScalarType::Long)),
        order(p.device.empty({count}, ScalarType::Long)) {
    STD_TORCH_CHECK(count < int64_t{1} << 31, "samples and rows together must be below 2^31, got ",
                    count);
    const cudaStream_t stream = p.device.stream();
    const int64_t samples = ids.numel();
    const Tensor listed = p.device.empty({2, count}, ScalarType::Long);
    auto* const unsorted = data<int64_t>(listed);
    check_launch(
        ssc::cuda::list_classes(data<int64_t>(ids), samples, data<int64_t>(target), count - samples,
                                p.classes, ignore_index, unsorted, unsorted + count, stream),
        "list_classes");
    const auto sort = [&](void* temporary, size_t& bytes) {
      check_launch(
          ssc::cuda::sort_classes(temporary, bytes, unsorted, unsorted + count, count, p.classes,
                                  data<int64_t>(classes), data<int64_t>(order), stream),
          "sort_classes");
    };
    size_t bytes = 0;
    sort(nullptr, bytes);
    const Tensor temporary = p.device.empty({static_cast<int64_t>(bytes) + 1}, ScalarType::Byte);
    sort(temporary.data_ptr(), bytes);
  }

  int64_t count;
  Tensor classes, order;
};

// The gradients of a sweep. Sparse ones have a row per entry of the order, because how many classes
// are distinct is not known here: the first row of a class has its gradient, and others, for it or
// for class 0, are zeros.
struct GradientTensors {
  GradientTensors(const Operands& p, int64_t entries, bool sparse)
      : sparse(sparse),
        dim(p.dim),
        input(p.device.empty({p.batch, p.dim}, p.dtype)),
        weight(p.device.empty({sparse ? entries : p.classes, p.dim}, p.dtype)),
        bias(p.device.empty({p.bias.has_value() ? weight.size(0) : 0}, p.dtype)),
        rows(p.device.empty({1, sparse ? entries : 0}, ScalarType::Long)),
        has_bias(p.bias.has_value()) {
    if (sparse) return;
    torch::stable::zero_(weight);
    torch::stable::zero_(bias);
  }

  template <class T>
  ssc::cuda::LossGradients<T> gradients(const Tensor& row_scale, const ClassOrder& order) const {
    using A = typename AccumulatorOf<T>::Type;
    return {data<A>(row_scale),
            data<T>(input),
            dim,
            data<int64_t>(order.classes),
            data<int64_t>(order.order),
            order.count,
            sparse,
            data<T>(weight),
            dim,
            has_bias ? data<T>(bias) : nullptr,
            sparse ? data<int64_t>(rows) : nullptr};
  }

  bool sparse;
  int64_t dim;
  Tensor input, weight, bias, rows;
  bool has_bias;
};

}  // namespace ssc::ops::cuda
