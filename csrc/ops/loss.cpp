// The loss operators on the CPU: tensors in, params structs out, kernels of csrc/cpu in between.
// Arguments were checked with a message for users in Python; what is checked here protects memory.
#include <algorithm>
#include <optional>
#include <tuple>

#include "csrc/ops/loss_arguments.h"

namespace ssc::ops {
namespace {

struct SampledArguments : Arguments {
  SampledArguments(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                   const Tensor& target_tensor, const Tensor& ids_tensor,
                   const std::optional<Tensor>& log_count,
                   const std::optional<Tensor>& target_log_count, double inv_temperature,
                   bool remove_accidental_hits, int64_t ignore_index)
      : Arguments(input, weight, bias, &target_tensor, inv_temperature),
        ids(contiguous_vector(ids_tensor, ids_tensor.numel(), "ids")) {
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
  std::optional<Tensor> count_holder;
  Workspace workspace;
  SamplePlan plan;
};

using Rows = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Rows loss_rows_cpu(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                   const Tensor& target, const Tensor& ids, const std::optional<Tensor>& log_count,
                   const std::optional<Tensor>& target_log_count, double inv_temperature,
                   bool remove_accidental_hits, int64_t ignore_index) {
  SampledArguments a(input, weight, bias, target, ids, log_count, target_log_count, inv_temperature,
                     remove_accidental_hits, ignore_index);
  const RowTensors rows(input, a.problem.batch, a.plan.rows, a.dtype);
  const auto run = [&]<class T>(T) {
    loss_rows<T>(a.problem, a.plan, rows.results<T>(), a.workspace, active_isa(),
                 torch_parallel_for());
  };
  a.dtype == ScalarType::Double ? run(double{}) : run(float{});
  return {rows.loss, rows.lse, rows.target_logit, rows.error};
}

using RowsAndGrads = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

RowsAndGrads loss_and_grads_cpu(const Tensor& input, const Tensor& weight,
                                const std::optional<Tensor>& bias, const Tensor& target,
                                const Tensor& ids, const std::optional<Tensor>& log_count,
                                const std::optional<Tensor>& target_log_count,
                                double inv_temperature, bool remove_accidental_hits,
                                int64_t ignore_index, const Tensor& row_scale, bool sparse_grad) {
  SampledArguments a(input, weight, bias, target, ids, log_count, target_log_count, inv_temperature,
                     remove_accidental_hits, ignore_index);
  const LossProblem& p = a.problem;
  const RowTensors rows(input, p.batch, a.plan.rows, a.dtype);
  const Tensor scale = contiguous_vector(row_scale, p.batch, "row_scale");
  STD_TORCH_CHECK(scale.scalar_type() == a.dtype, "row_scale must have the row outputs' dtype");

  const bool skips_rows = a.plan.rows < p.batch;
  const Tensor grad_input = skips_rows ? torch::stable::new_zeros(input, {p.batch, p.dim})
                                       : torch::stable::new_empty(input, {p.batch, p.dim});
  const int64_t touched = a.plan.touched_count;
  const auto rows_of = [&](const Tensor& like, bool is_matrix) {
    const int64_t n = sparse_grad ? touched : p.classes;
    const int64_t shape[] = {n, p.dim};
    const torch::headeronly::IntHeaderOnlyArrayRef size(shape, is_matrix ? 2 : 1);
    return sparse_grad ? torch::stable::new_empty(like, size)
                       : torch::stable::new_zeros(like, size);
  };
  const Tensor grad_weight = rows_of(weight, true);
  const Tensor grad_bias =
      bias.has_value() ? rows_of(*bias, false) : torch::stable::new_empty(weight, {0});
  const Tensor grad_rows =
      torch::stable::new_empty(target, {sparse_grad ? touched : 0}, ScalarType::Long);
  if (sparse_grad) {
    std::copy_n(a.plan.touched, touched, static_cast<int64_t*>(grad_rows.data_ptr()));
  }
  const auto run = [&]<class T>(T) {
    const Vector bias_grad = {bias.has_value() ? grad_bias.data_ptr() : nullptr, p.bias.dtype};
    const Gradients<T> gradients = {static_cast<const T*>(scale.data_ptr()),
                                    {grad_input.data_ptr(), p.dim, p.input.dtype},
                                    {grad_weight.data_ptr(), p.dim, p.weight.dtype},
                                    bias_grad,
                                    sparse_grad};
    loss_and_grads<T>(p, a.plan, rows.results<T>(), gradients, a.workspace, active_isa(),
                      torch_parallel_for());
  };
  a.dtype == ScalarType::Double ? run(double{}) : run(float{});
  return {rows.loss,  rows.lse,    rows.target_logit, rows.error,
          grad_input, grad_weight, grad_bias,         grad_rows};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sampled_softmax, CPU, m) {
  m.impl("loss_rows", TORCH_BOX(&loss_rows_cpu));
  m.impl("loss_and_grads", TORCH_BOX(&loss_and_grads_cpu));
}

}  // namespace ssc::ops
