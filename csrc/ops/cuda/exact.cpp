// The exact loss and plain logits on the GPU, as in csrc/ops/cpu.
#include <optional>
#include <tuple>

#include "csrc/cuda/loss/forward.h"
#include "csrc/ops/cuda/arguments.h"

namespace ssc::ops::cuda {
namespace {

std::tuple<Tensor, Tensor> exact_loss_rows_cuda(const Tensor& input, const Tensor& weight,
                                                const std::optional<Tensor>& bias,
                                                const Tensor& target, double inv_temperature,
                                                int64_t ignore_index, int64_t products) {
  const Operands p(input, weight, bias, inv_temperature, products);
  const Tensor targets = p.class_ids(target, p.batch, "target");
  const auto row = [&] { return p.device.empty({p.batch}, p.row_dtype); };
  const Tensor loss = row(), lse = row(), target_logit = row(), error = row();
  with_type(p.dtype, [&]<class T>(T*) {
    using A = typename AccumulatorOf<T>::Type;
    LossProblem<T> problem = p.problem<T>();
    problem.target = data<int64_t>(targets);
    problem.ignore_index = ignore_index;
    const int splits = p.splits(p.classes);
    const Tensor workspace =
        p.device.empty({ssc::cuda::loss_rows_bytes<T>(p.batch, splits)}, ScalarType::Byte);
    check_launch(ssc::cuda::exact_loss_rows(
                     problem, {data<A>(loss), data<A>(lse), data<A>(target_logit), data<A>(error)},
                     splits, workspace.data_ptr(), p.path<T>(), p.device.stream()),
                 "exact_loss_rows");
  });
  return {loss, lse};
}

Tensor logits_cuda(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                   int64_t begin, int64_t end, double inv_temperature, int64_t products) {
  const Operands p(input, weight, bias, inv_temperature, products);
  STD_TORCH_CHECK(0 <= begin && begin <= end && end <= p.classes, "classes [", begin, ", ", end,
                  ") are not within [0, C=", p.classes, ")");
  const Tensor out = p.device.empty({p.batch, end - begin}, p.row_dtype);
  with_type(p.dtype, [&]<class T>(T*) {
    using A = typename AccumulatorOf<T>::Type;
    check_launch(ssc::cuda::logits(p.problem<T>(), begin, end, data<A>(out), end - begin,
                                   p.splits(end - begin), p.path<T>(), p.device.stream()),
                 "logits");
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sampled_softmax, SSC_CUDA_KEY, m) {
  m.impl("exact_loss_rows", TORCH_BOX(&exact_loss_rows_cuda));
  m.impl("logits", TORCH_BOX(&logits_cuda));
}

}  // namespace ssc::ops::cuda
