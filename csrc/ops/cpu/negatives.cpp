// The negatives' share of losses that are composed in Python, with caps, softplus and any number of
// hits per row. Samples that all rows share go through the matmuls of the loss, those of single
// rows, given or drawn from a key, through per_row.h.
#include <algorithm>
#include <optional>
#include <tuple>

#include "csrc/ops/cpu/per_row.h"

namespace ssc::ops::cpu {
namespace {

using OptionalTensor = std::optional<Tensor>;

// The loss against samples that all rows share, and the plan made of them. targets: further classes
// whose rows of the gradient are wanted.
struct Shared {
  Shared(const Operands& operands, const Rows& rows, const Tensor& ids_tensor,
         const OptionalTensor& log_count, const Sum& sum, const OptionalTensor& target_classes)
      : problem(operands.problem),
        form{sum.sigmoid, sum.softcap},
        ids(contiguous_vector(ids_tensor, ids_tensor.numel(), "ids")) {
    STD_TORCH_CHECK(ids.numel() > 0, "ids must not be empty");
    problem.negatives = &form;
    problem.target_logit = {rows.target_logit.data_ptr(),
                            dtype_of(rows.target_logit, "target_logit")};
    const Vector counts = optional_vector(log_count, ids.size(0), "log_expected_count", holder);
    STD_TORCH_CHECK(counts.dtype == DType::f32 || counts.dtype == DType::f64,
                    "log_expected_count must be float32 or float64");
    const int64_t* others = nullptr;
    int64_t other_count = 0;
    if (target_classes.has_value()) {
      targets = torch::stable::contiguous(*target_classes);
      others = check_targets(*targets, problem.classes);
      other_count = targets->numel();
    }
    plan = plan_negatives(integers(ids, "ids"), ids.size(0), counts.data, counts.dtype,
                          integers(rows.hits, "hits"), rows.hits.size(1), rows.mask(),
                          problem.batch, problem.classes, sum.remove_hits, sum.sigmoid, others,
                          other_count, workspace);
    operands.check(plan);
  }
  Shared(const Shared&) = delete;  // the problem points to the form

  LossProblem problem;
  NegativesForm form;
  Tensor ids;
  OptionalTensor holder, targets;
  Workspace workspace;
  SamplePlan plan;
};

// loss and peak [B], zero where a row does not count.
LossAndPeak row_results(const Shared& shared, ScalarType dtype) {
  const int64_t batch = shared.problem.batch;
  const bool all_rows = shared.plan.rows == batch;
  return {zeros_unless({batch}, all_rows, dtype), zeros_unless({batch}, all_rows, dtype)};
}

template <class T>
RowResults<T> results_in(const Tensor& loss, const Tensor& peak) {
  return {static_cast<T*>(loss.data_ptr()), nullptr, nullptr, nullptr,
          static_cast<T*>(peak.data_ptr())};
}

LossAndPeak shared_rows(const Operands& operands, Shared& shared) {
  const auto [loss, peak] = row_results(shared, operands.dtype);
  with_accumulator(operands.dtype, [&]<class T>(T) {
    loss_rows<T>(shared.problem, shared.plan, results_in<T>(loss, peak), shared.workspace,
                 active_isa(shared.problem.batch), operands.threads(shared.ids.numel()));
  });
  return {loss, peak};
}

// Losses, peaks and gradients in one sweep.
LossAndPeak run_sweep(const Operands& operands, Shared& shared, const Tensor& row_scale,
                      const GradientTensors& grads) {
  const LossProblem& p = shared.problem;
  const Tensor scale = row_numbers(row_scale, operands, "row_scale");
  const auto [loss, peak] = row_results(shared, operands.dtype);
  with_accumulator(operands.dtype, [&]<class T>(T) {
    loss_and_grads<T>(p, shared.plan, results_in<T>(loss, peak),
                      grads.gradients(static_cast<const T*>(scale.data_ptr())), shared.workspace,
                      active_isa(p.batch), operands.threads(shared.ids.numel()));
  });
  return {loss, peak};
}

LossAndPeak negatives_rows(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                           const Tensor& target_logit, const Tensor& hits,
                           const OptionalTensor& counted, const OptionalTensor& ids,
                           const OptionalTensor& log_count, const OptionalTensor& key, int64_t kind,
                           int64_t num_classes, const OptionalTensor& table,
                           const OptionalTensor& probability_bits, int64_t num_drawable,
                           int64_t num_samples, int64_t method, const OptionalTensor& tries,
                           const OptionalTensor& exclude, bool corrected, double inv_temperature,
                           double softcap, bool remove_hits, bool sigmoid, int64_t products) {
  const Operands operands(input, weight, bias, inv_temperature, products);
  const Rows rows(target_logit, hits, counted, operands);
  const Source source = {
      ids,          log_count,   key,    {kind, num_classes, table, probability_bits},
      num_drawable, num_samples, method, tries,
      exclude,      corrected};
  const Sum sum = {softcap, remove_hits, sigmoid};
  if (source.of_rows()) return per_row_rows(operands, rows, source, sum);
  Shared shared(operands, rows, *ids, log_count, sum, std::nullopt);
  return shared_rows(operands, shared);
}

Grads negatives_grads(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                      const Tensor& target_logit, const Tensor& hits, const OptionalTensor& counted,
                      const OptionalTensor& ids, const OptionalTensor& log_count,
                      const OptionalTensor& key, int64_t kind, int64_t num_classes,
                      const OptionalTensor& table, const OptionalTensor& probability_bits,
                      int64_t num_drawable, int64_t num_samples, int64_t method,
                      const OptionalTensor& tries, const OptionalTensor& exclude, bool corrected,
                      double inv_temperature, double softcap, bool remove_hits, bool sigmoid,
                      const Tensor& row_scale, bool sparse_grad, int64_t products) {
  const Operands operands(input, weight, bias, inv_temperature, products);
  const Rows rows(target_logit, hits, counted, operands);
  const Source source = {
      ids,          log_count,   key,    {kind, num_classes, table, probability_bits},
      num_drawable, num_samples, method, tries,
      exclude,      corrected};
  const Sum sum = {softcap, remove_hits, sigmoid};
  const GradientDtypes dtypes = gradient_dtypes(input, weight, bias);
  if (source.of_rows()) {
    return per_row_grads(operands, rows, source, sum, row_scale, dtypes, sparse_grad);
  }
  Shared shared(operands, rows, *ids, log_count, sum, std::nullopt);
  const GradientTensors grads(shared.problem, dtypes, shared.plan, sparse_grad);
  run_sweep(operands, shared, row_scale, grads);
  return {grads.input, grads.weight, grads.bias, grads.rows};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> negatives_loss_and_grads(
    const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
    const Tensor& target_logit, const Tensor& hits, const OptionalTensor& counted,
    const Tensor& ids, const OptionalTensor& log_count, double inv_temperature, double softcap,
    bool remove_hits, bool sigmoid, const Tensor& row_scale, const Tensor& target,
    int64_t products) {
  const Operands operands(input, weight, bias, inv_temperature, products);
  const Rows rows(target_logit, hits, counted, operands);
  Shared shared(operands, rows, ids, log_count, {softcap, remove_hits, sigmoid}, target);
  const GradientTensors grads(shared.problem, wide_dtypes(operands.dtype, bias), shared.plan, true);
  const auto [loss, peak] = run_sweep(operands, shared, row_scale, grads);
  return {loss, peak, grads.input, grads.weight, grads.bias, grads.rows};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sampled_softmax, CPU, m) {
  m.impl("negatives_rows", TORCH_BOX(&negatives_rows));
  m.impl("negatives_grads", TORCH_BOX(&negatives_grads));
  m.impl("negatives_loss_and_grads", TORCH_BOX(&negatives_loss_and_grads));
}

}  // namespace ssc::ops::cpu
