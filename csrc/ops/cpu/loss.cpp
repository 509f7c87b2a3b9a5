// The loss operators on the CPU: from tensors to the structs of csrc/cpu and back.
#include <algorithm>
#include <optional>
#include <tuple>

#include "csrc/ops/cpu/arguments.h"

namespace ssc::ops::cpu {
namespace {

// The operands, targets and samples of a loss, and the plan made of them.
struct Sampled : Operands {
  Sampled(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
          const Tensor& target_tensor, const Tensor& ids_tensor,
          const std::optional<Tensor>& log_count, const std::optional<Tensor>& target_log_count,
          double inv_temperature, bool remove_accidental_hits, int64_t ignore_index,
          int64_t products)
      : Operands(input, weight, bias, inv_temperature, products),
        ids(contiguous_vector(ids_tensor, ids_tensor.numel(), "ids")) {
    set_target(target_tensor);
    const int64_t samples = ids.size(0);
    problem.target_log_expected_count = optional_vector(
        target_log_count, problem.batch, "target_log_expected_count", target_count_holder);
    const Vector counts = optional_vector(log_count, samples, "log_expected_count", count_holder);
    STD_TORCH_CHECK(counts.dtype == DType::f32 || counts.dtype == DType::f64,
                    "log_expected_count must be float32 or float64");
    plan = plan_samples(integers(ids, "ids"), samples, counts.data, counts.dtype, problem.target,
                        problem.batch, problem.classes, ignore_index, remove_accidental_hits,
                        workspace);
    check(plan);
  }

  Tensor ids;
  std::optional<Tensor> count_holder, target_count_holder;
  Workspace workspace;
  SamplePlan plan;
};

using RowResultTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

RowResultTensors loss_rows_cpu(const Tensor& input, const Tensor& weight,
                               const std::optional<Tensor>& bias, const Tensor& target,
                               const Tensor& ids, const std::optional<Tensor>& log_count,
                               const std::optional<Tensor>& target_log_count,
                               double inv_temperature, bool remove_accidental_hits,
                               int64_t ignore_index, int64_t products) {
  Sampled a(input, weight, bias, target, ids, log_count, target_log_count, inv_temperature,
            remove_accidental_hits, ignore_index, products);
  const RowTensors rows(a.problem.batch, a.plan.rows, a.dtype);
  with_accumulator(a.dtype, [&]<class T>(T) {
    loss_rows<T>(a.problem, a.plan, rows.results<T>(), a.workspace, active_isa(a.problem.batch),
                 a.threads(ids.numel()));
  });
  return {rows.loss, rows.lse, rows.target_logit, rows.error};
}

using LossAndGrads = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The factor of each row's loss, [batch]: given, or the same for all rows.
template <class T>
const T* row_factors(const std::optional<Tensor>& given, bool mean, Sampled& a) {
  if (given.has_value()) return static_cast<const T*>(given->data_ptr());
  const T factor = mean && a.plan.rows > 0 ? T(1) / static_cast<T>(a.plan.rows) : T(1);
  T* factors = a.workspace.take<T>(a.problem.batch);
  std::fill_n(factors, a.problem.batch, factor);
  return factors;
}

// Added up in order, so that the number of threads does not change the sum.
template <class T>
T weighted_sum(const T* factors, const T* values, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(factors[i]) * values[i];
  return static_cast<T>(sum);
}

// One sweep into `grads`.
LossAndGrads run_sweep(Sampled& a, const std::optional<Tensor>& row_scale, bool mean,
                       const GradientTensors& grads) {
  const LossProblem& p = a.problem;
  std::optional<Tensor> scale;
  if (row_scale.has_value()) {
    scale = row_numbers(*row_scale, a, "row_scale");
  }
  const bool all_rows = a.plan.rows == p.batch;
  const Tensor total = empty_cpu({}, a.dtype);
  const Tensor rows = zeros_unless({4, p.batch}, all_rows, a.dtype);
  with_accumulator(a.dtype, [&]<class T>(T) {
    const T* factors = row_factors<T>(scale, mean, a);
    auto* loss = static_cast<T*>(rows.data_ptr());
    const RowResults<T> results = {loss, loss + p.batch, loss + 2 * p.batch, loss + 3 * p.batch,
                                   nullptr};
    loss_and_grads<T>(p, a.plan, results, grads.gradients(factors), a.workspace,
                      active_isa(p.batch), a.threads(a.ids.numel()));
    *static_cast<T*>(total.data_ptr()) = weighted_sum(factors, loss, p.batch);
  });
  return {total, rows, grads.input, grads.weight, grads.bias, grads.rows};
}

LossAndGrads loss_and_grads_cpu(const Tensor& input, const Tensor& weight,
                                const std::optional<Tensor>& bias, const Tensor& target,
                                const Tensor& ids, const std::optional<Tensor>& log_count,
                                const std::optional<Tensor>& target_log_count,
                                double inv_temperature, bool remove_accidental_hits,
                                int64_t ignore_index, const std::optional<Tensor>& row_scale,
                                bool mean, bool sparse_grad, int64_t products) {
  Sampled a(input, weight, bias, target, ids, log_count, target_log_count, inv_temperature,
            remove_accidental_hits, ignore_index, products);
  const GradientTensors grads(a.problem, gradient_dtypes(input, weight, bias), a.plan, sparse_grad);
  return run_sweep(a, row_scale, mean, grads);
}

LossAndGrads loss_and_wide_grads_cpu(const Tensor& input, const Tensor& weight,
                                     const std::optional<Tensor>& bias, const Tensor& target,
                                     const Tensor& ids, const std::optional<Tensor>& log_count,
                                     const std::optional<Tensor>& target_log_count,
                                     double inv_temperature, bool remove_accidental_hits,
                                     int64_t ignore_index, const std::optional<Tensor>& row_scale,
                                     bool mean, int64_t products) {
  Sampled a(input, weight, bias, target, ids, log_count, target_log_count, inv_temperature,
            remove_accidental_hits, ignore_index, products);
  const GradientTensors grads(a.problem, wide_dtypes(a.dtype, bias), a.plan, true);
  return run_sweep(a, row_scale, mean, grads);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sampled_softmax, CPU, m) {
  m.impl("loss_rows", TORCH_BOX(&loss_rows_cpu));
  m.impl("loss_and_grads", TORCH_BOX(&loss_and_grads_cpu));
  m.impl("loss_and_wide_grads", TORCH_BOX(&loss_and_wide_grads_cpu));
}

}  // namespace ssc::ops::cpu
