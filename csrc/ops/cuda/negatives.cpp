// The negatives' share of a loss on the GPU, as in csrc/ops/cpu.
#include <optional>
#include <tuple>

#include "csrc/cuda/negatives/step.h"
#include "csrc/ops/cuda/gradients.h"

namespace ssc::ops::cuda {
namespace {

using ssc::cuda::NegativesProblem;

struct NegativeArguments : Parameters {
  NegativeArguments(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                    const Tensor& target_logit, const Tensor& hits,
                    const std::optional<Tensor>& counted, const Tensor& ids,
                    const std::optional<Tensor>& log_count, double inv_temperature, double softcap,
                    bool remove_hits, bool sigmoid, bool tf32)
      : Parameters(input, weight, bias, inv_temperature, tf32),
        target_logit(row_numbers(target_logit, "target_logit")),
        hits(torch::stable::contiguous(hits)),
        ids(class_ids(ids, ids.numel(), "ids")),
        labels(device.empty({batch}, ScalarType::Long)),
        log_count(counts(log_count, ids.numel(), "log_expected_count")),
        softcap(softcap),
        remove_hits(remove_hits),
        sigmoid(sigmoid) {
    device.check_here(hits, "hits");
    integers(hits, "hits");
    STD_TORCH_CHECK(hits.dim() == 2 && hits.size(0) == batch, "hits must be [B, K]");
    STD_TORCH_CHECK(ids.numel() > 0, "ids must not be empty");
    std::optional<Tensor> mask;
    if (counted.has_value()) {
      device.check_here(*counted, "counted");
      mask = contiguous_vector(*counted, batch, "counted");
      STD_TORCH_CHECK(mask->scalar_type() == ScalarType::Bool, "counted must be bool");
    }
    check_launch(
        ssc::cuda::label_rows(data<bool>(mask), batch, data<int64_t>(labels), device.stream()),
        "label_rows");
  }

  template <class T>
  NegativesProblem<T> negatives() const {
    using A = typename AccumulatorOf<T>::Type;
    LossProblem<T> p = Parameters::problem<T>();
    p.target = data<int64_t>(labels);
    p.ignore_index = ssc::cuda::kRowIgnored;
    p.ids = data<int64_t>(ids);
    p.log_expected_count = data<float>(log_count);
    p.samples = ids.numel();
    p.remove_accidental_hits = remove_hits;
    return {
        p,      data<A>(target_logit), data<int64_t>(hits), hits.size(1), static_cast<A>(softcap),
        sigmoid};
  }

  Tensor target_logit, hits, ids, labels;
  std::optional<Tensor> log_count;
  double softcap;
  bool remove_hits, sigmoid;
};

std::tuple<Tensor, Tensor> negative_rows_cuda(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
    const Tensor& target_logit, const Tensor& hits, const std::optional<Tensor>& counted,
    const Tensor& ids, const std::optional<Tensor>& log_count, double inv_temperature,
    double softcap, bool remove_hits, bool sigmoid, bool tf32) {
  const NegativeArguments a(input, weight, bias, target_logit, hits, counted, ids, log_count,
                            inv_temperature, softcap, remove_hits, sigmoid, tf32);
  const Tensor loss = a.device.empty({a.batch}, a.row_dtype);
  const Tensor peak = a.device.empty({a.batch}, a.row_dtype);
  with_type(a.dtype, [&]<class T>(T*) {
    using A = typename AccumulatorOf<T>::Type;
    const ssc::cuda::NegativeRowsLayout layout =
        ssc::cuda::negative_rows_layout<T>(a.batch, a.ids.numel(), a.device.multiprocessors());
    const Tensor workspace = a.device.empty({layout.bytes}, ScalarType::Byte);
    check_launch(
        ssc::cuda::negative_rows(a.negatives<T>(), {data<A>(loss), nullptr, data<A>(peak)}, layout,
                                 workspace.data_ptr(), a.path<T>(), a.device.stream()),
        "negative_rows");
  });
  return {loss, peak};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> negative_grads_cuda(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
    const Tensor& target_logit, const Tensor& hits, const std::optional<Tensor>& counted,
    const Tensor& ids, const std::optional<Tensor>& log_count, double inv_temperature,
    double softcap, bool remove_hits, bool sigmoid, const Tensor& row_scale, bool sparse_grad,
    bool tf32) {
  const NegativeArguments a(input, weight, bias, target_logit, hits, counted, ids, log_count,
                            inv_temperature, softcap, remove_hits, sigmoid, tf32);
  const Tensor scale = a.row_numbers(row_scale, "row_scale");
  const ClassOrder sorted(a, a.ids, std::nullopt, ssc::cuda::kRowIgnored);
  const GradientTensors grads(a, sorted.count, sparse_grad);
  with_type(a.dtype, [&]<class T>(T*) {
    const int64_t samples = a.ids.numel();
    const ssc::cuda::WorkspaceLayout layout =
        ssc::cuda::workspace_layout<T>(a.batch, a.dim, samples, a.device.multiprocessors(),
                                       ssc::cuda::negative_row_bytes<T>(samples));
    const Tensor workspace = a.device.empty({layout.bytes}, ScalarType::Byte);
    check_launch(
        ssc::cuda::negative_grads(a.negatives<T>(), grads.gradients<T>(scale, sorted), layout,
                                  workspace.data_ptr(), a.path<T>(), a.device.stream()),
        "negative_grads");
  });
  return {grads.input, grads.weight, grads.bias, grads.rows};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sampled_softmax, SSC_CUDA_KEY, m) {
  m.impl("negative_rows", TORCH_BOX(&negative_rows_cuda));
  m.impl("negative_grads", TORCH_BOX(&negative_grads_cuda));
}

}  // namespace ssc::ops::cuda
