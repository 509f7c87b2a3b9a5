// The loss operators on the GPU: from tensors to the structs of csrc/cuda and back. Python has
// checked the arguments with messages for users; the checks here protect memory. Values are not
// looked at: an id outside [0, C) is for the kernels, which give NaN.
#include <optional>
#include <tuple>

#include "csrc/cuda/loss/forward.h"
#include "csrc/cuda/loss/total.h"
#include "csrc/ops/cuda/gradients.h"

namespace ssc::ops::cuda {
namespace {

// The operands, targets and samples of a loss.
struct Sampled : Operands {
  Sampled(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
          const Tensor& target, const Tensor& ids, const std::optional<Tensor>& log_count,
          const std::optional<Tensor>& target_log_count, double inv_temperature,
          bool remove_accidental_hits, int64_t ignore_index, int64_t products)
      : Operands(input, weight, bias, inv_temperature, products),
        target(class_ids(target, batch, "target")),
        ids(class_ids(ids, ids.numel(), "ids")),
        log_count(counts(log_count, ids.numel(), "log_expected_count")),
        target_log_count(counts(target_log_count, batch, "target_log_expected_count")),
        samples(ids.numel()),
        ignore_index(ignore_index),
        remove_accidental_hits(remove_accidental_hits) {}

  template <class T>
  LossProblem<T> problem() const {
    LossProblem<T> p = Operands::problem<T>();
    p.target = data<int64_t>(target);
    p.ids = data<int64_t>(ids);
    p.log_expected_count = data<float>(log_count);
    p.target_log_expected_count = data<float>(target_log_count);
    p.samples = samples;
    p.ignore_index = ignore_index;
    p.remove_accidental_hits = remove_accidental_hits;
    return p;
  }

  Tensor target, ids;
  std::optional<Tensor> log_count, target_log_count;
  int64_t samples, ignore_index;
  bool remove_accidental_hits;
};

using RowResultTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

RowResultTensors loss_rows_cuda(const Tensor& input, const Tensor& weight,
                                const std::optional<Tensor>& bias, const Tensor& target,
                                const Tensor& ids, const std::optional<Tensor>& log_count,
                                const std::optional<Tensor>& target_log_count,
                                double inv_temperature, bool remove_accidental_hits,
                                int64_t ignore_index, int64_t products) {
  const Sampled a(input, weight, bias, target, ids, log_count, target_log_count, inv_temperature,
                  remove_accidental_hits, ignore_index, products);
  const auto row = [&] { return a.device.empty({a.batch}, a.row_dtype); };
  const RowResultTensors rows = {row(), row(), row(), row()};
  const auto& [loss, lse, target_logit, error] = rows;
  with_type(a.dtype, [&]<class T>(T*) {
    using A = typename AccumulatorOf<T>::Type;
    const int splits = a.splits(a.samples);
    const Tensor workspace =
        a.device.empty({ssc::cuda::loss_rows_bytes<T>(a.batch, splits)}, ScalarType::Byte);
    check_launch(
        ssc::cuda::loss_rows(a.problem<T>(),
                             {data<A>(loss), data<A>(lse), data<A>(target_logit), data<A>(error)},
                             splits, workspace.data_ptr(), a.path<T>(), a.device.stream()),
        "loss_rows");
  });
  return rows;
}

using LossAndGrads = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

LossAndGrads loss_and_grads_cuda(const Tensor& input, const Tensor& weight,
                                 const std::optional<Tensor>& bias, const Tensor& target,
                                 const Tensor& ids, const std::optional<Tensor>& log_count,
                                 const std::optional<Tensor>& target_log_count,
                                 double inv_temperature, bool remove_accidental_hits,
                                 int64_t ignore_index, const std::optional<Tensor>& row_scale,
                                 bool mean, bool sparse_grad, int64_t products) {
  const Sampled a(input, weight, bias, target, ids, log_count, target_log_count, inv_temperature,
                  remove_accidental_hits, ignore_index, products);
  const OnDevice& device = a.device;
  const cudaStream_t stream = device.stream();
  const Tensor scale = row_scale.has_value() ? a.row_numbers(*row_scale, "row_scale")
                                             : device.empty({a.batch}, a.row_dtype);
  const Tensor total = device.empty({}, a.row_dtype);
  const Tensor rows = device.empty({4, a.batch}, a.row_dtype);
  const ClassOrder sorted(a, a.ids, a.target, a.ignore_index);
  const GradientTensors grads(a, sorted.count, sparse_grad);
  with_type(a.dtype, [&]<class T>(T*) {
    using A = typename AccumulatorOf<T>::Type;
    if (!row_scale.has_value()) {
      check_launch(ssc::cuda::row_factors(data<int64_t>(a.target), a.batch, a.ignore_index, mean,
                                          data<A>(scale), stream),
                   "row_factors");
    }
    A* const loss = data<A>(rows);
    const ssc::cuda::RowResults<A> results = {loss, loss + a.batch, loss + 2 * a.batch,
                                              loss + 3 * a.batch};
    const ssc::cuda::WorkspaceLayout layout =
        ssc::cuda::workspace_layout<T>(a.batch, a.dim, a.samples, device.multiprocessors());
    const Tensor workspace = device.empty({layout.bytes}, ScalarType::Byte);
    check_launch(
        ssc::cuda::loss_and_grads(a.problem<T>(), results, grads.gradients<T>(scale, sorted),
                                  layout, workspace.data_ptr(), a.path<T>(), stream),
        "loss_and_grads");
    check_launch(
        ssc::cuda::total_loss(data<A>(scale), results.loss, a.batch, data<A>(total), stream),
        "total_loss");
  });
  return {total, rows, grads.input, grads.weight, grads.bias, grads.rows};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sampled_softmax, SSC_CUDA_KEY, m) {
  m.impl("loss_rows", TORCH_BOX(&loss_rows_cuda));
  m.impl("loss_and_grads", TORCH_BOX(&loss_and_grads_cuda));
}

}  // namespace ssc::ops::cuda
