// The negatives' share of a loss on the CPU, for losses that are composed in Python: against logits
// that are given, with caps, softplus and any number of hits per row.
#include <algorithm>
#include <optional>
#include <tuple>

#include "csrc/ops/cpu/arguments.h"

namespace ssc::ops::cpu {
namespace {

struct NegativeArguments : Arguments {
  NegativeArguments(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                    const Tensor& target_logit, const Tensor& hits_tensor,
                    const std::optional<Tensor>& counted_rows, const Tensor& ids_tensor,
                    const std::optional<Tensor>& log_count, double inv_temperature, double softcap,
                    bool remove_hits, bool sigmoid, const std::optional<Tensor>& target_classes)
      : Arguments(input, weight, bias, nullptr, inv_temperature),
        form{sigmoid, softcap},
        logits(contiguous_vector(target_logit, problem.batch, "target_logit")),
        ids(contiguous_vector(ids_tensor, ids_tensor.numel(), "ids")),
        hits(torch::stable::contiguous(hits_tensor)) {
    STD_TORCH_CHECK(logits.scalar_type() == dtype, "target_logit must have the results' dtype");
    STD_TORCH_CHECK(hits.dim() == 2 && hits.size(0) == problem.batch, "hits must be [B, K]");
    STD_TORCH_CHECK(ids.numel() > 0, "ids must not be empty");
    problem.negatives = &form;
    problem.target_logit = {logits.data_ptr(), dtype_of(logits, "target_logit")};
    const Vector counts = optional_vector(log_count, ids.size(0), "log_expected_count", holder);
    STD_TORCH_CHECK(counts.dtype == DType::f32 || counts.dtype == DType::f64,
                    "log_expected_count must be float32 or float64");
    const bool* mask = nullptr;
    if (counted_rows.has_value()) {
      counted = contiguous_vector(*counted_rows, problem.batch, "counted");
      STD_TORCH_CHECK(counted->scalar_type() == ScalarType::Bool, "counted must be bool");
      mask = static_cast<const bool*>(counted->data_ptr());
    }
    const int64_t* others = nullptr;
    int64_t other_count = 0;
    if (target_classes.has_value()) {
      targets = torch::stable::contiguous(*target_classes);
      others = check_targets(*targets, problem.classes);
      other_count = targets->numel();
    }
    plan = plan_negatives(integers(ids, "ids"), ids.size(0), counts.data, counts.dtype,
                          integers(hits, "hits"), hits.size(1), mask, problem.batch,
                          problem.classes, remove_hits, sigmoid, others, other_count, workspace);
    check(plan);
  }
  NegativeArguments(const NegativeArguments&) = delete;  // the problem points to the form

  NegativesForm form;
  Tensor logits, ids, hits;
  std::optional<Tensor> holder, counted, targets;
  Workspace workspace;
  SamplePlan plan;
};

// loss and peak [B], zero where a row does not count.
std::tuple<Tensor, Tensor> row_results(const NegativeArguments& a) {
  const bool all_rows = a.plan.rows == a.problem.batch;
  return {zeros_unless({a.problem.batch}, all_rows, a.dtype),
          zeros_unless({a.problem.batch}, all_rows, a.dtype)};
}

template <class T>
RowResults<T> results_in(const Tensor& loss, const Tensor& peak) {
  return {static_cast<T*>(loss.data_ptr()), nullptr, nullptr, nullptr,
          static_cast<T*>(peak.data_ptr())};
}

std::tuple<Tensor, Tensor> negative_rows_cpu(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
    const Tensor& target_logit, const Tensor& hits, const std::optional<Tensor>& counted,
    const Tensor& ids, const std::optional<Tensor>& log_count, double inv_temperature,
    double softcap, bool remove_hits, bool sigmoid, bool /*tf32*/) {
  NegativeArguments a(input, weight, bias, target_logit, hits, counted, ids, log_count,
                      inv_temperature, softcap, remove_hits, sigmoid, std::nullopt);
  const auto [loss, peak] = row_results(a);
  with_accumulator(a.dtype, [&]<class T>(T) {
    loss_rows<T>(a.problem, a.plan, results_in<T>(loss, peak), a.workspace,
                 active_isa(a.problem.batch), a.threads(ids.numel()));
  });
  return {loss, peak};
}

// Losses, peaks and gradients in one sweep.
std::tuple<Tensor, Tensor> run_sweep(NegativeArguments& a, const Tensor& row_scale,
                                     const GradientTensors& grads) {
  const LossProblem& p = a.problem;
  const Tensor scale = contiguous_vector(row_scale, p.batch, "row_scale");
  STD_TORCH_CHECK(scale.scalar_type() == a.dtype, "row_scale must have the results' dtype");
  const auto [loss, peak] = row_results(a);
  with_accumulator(a.dtype, [&]<class T>(T) {
    const RowResults<T> results = results_in<T>(loss, peak);
    loss_and_grads<T>(p, a.plan, results, grads.gradients(static_cast<const T*>(scale.data_ptr())),
                      a.workspace, active_isa(a.problem.batch), a.threads(a.ids.numel()));
  });
  return {loss, peak};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> negative_grads_cpu(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
    const Tensor& target_logit, const Tensor& hits, const std::optional<Tensor>& counted,
    const Tensor& ids, const std::optional<Tensor>& log_count, double inv_temperature,
    double softcap, bool remove_hits, bool sigmoid, const Tensor& row_scale, bool sparse_grad,
    bool /*tf32*/) {
  NegativeArguments a(input, weight, bias, target_logit, hits, counted, ids, log_count,
                      inv_temperature, softcap, remove_hits, sigmoid, std::nullopt);
  const GradientTensors grads(a.problem, gradient_dtypes(input, weight, bias), a.plan, sparse_grad);
  run_sweep(a, row_scale, grads);
  return {grads.input, grads.weight, grads.bias, grads.rows};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> negative_loss_and_grads_cpu(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
    const Tensor& target_logit, const Tensor& hits, const std::optional<Tensor>& counted,
    const Tensor& ids, const std::optional<Tensor>& log_count, double inv_temperature,
    double softcap, bool remove_hits, bool sigmoid, const Tensor& row_scale, const Tensor& target) {
  NegativeArguments a(input, weight, bias, target_logit, hits, counted, ids, log_count,
                      inv_temperature, softcap, remove_hits, sigmoid, target);
  const GradientTensors grads(a.problem, wide_dtypes(a.dtype, bias), a.plan, true);
  const auto [loss, peak] = run_sweep(a, row_scale, grads);
  return {loss, peak, grads.input, grads.weight, grads.bias, grads.rows};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sampled_softmax, CPU, m) {
  m.impl("negative_rows", TORCH_BOX(&negative_rows_cpu));
  m.impl("negative_grads", TORCH_BOX(&negative_grads_cpu));
  m.impl("negative_loss_and_grads", TORCH_BOX(&negative_loss_and_grads_cpu));
}

}  // namespace ssc::ops::cpu
