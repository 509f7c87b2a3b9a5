// Evaluation over all classes on the CPU: the exact cross entropy and plain logits.
#include <optional>
#include <tuple>

#include "csrc/ops/cpu/arguments.h"

namespace ssc::ops::cpu {
namespace {

std::tuple<Tensor, Tensor> exact_loss_rows_cpu(const Tensor& input, const Tensor& weight,
                                               const std::optional<Tensor>& bias,
                                               const Tensor& target, double inv_temperature,
                                               int64_t ignore_index, int64_t products) {
  Operands a(input, weight, bias, inv_temperature, products);
  a.set_target(target);
  Workspace workspace;
  const SamplePlan plan =
      plan_samples(nullptr, 0, nullptr, DType::f32, a.problem.target, a.problem.batch,
                   a.problem.classes, ignore_index, true, workspace);
  a.check(plan);
  const RowTensors rows(a.problem.batch, plan.rows, a.dtype);
  with_accumulator(a.dtype, [&]<class T>(T) {
    exact_loss_rows<T>(a.problem, plan, rows.results<T>(), workspace, active_isa(a.problem.batch),
                       a.threads(a.problem.classes));
  });
  return {rows.loss, rows.lse};
}

Tensor logits_cpu(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                  int64_t begin, int64_t end, double inv_temperature, int64_t products) {
  const Operands a(input, weight, bias, inv_temperature, products);
  STD_TORCH_CHECK(0 <= begin && begin <= end && end <= a.problem.classes, "classes [", begin, ", ",
                  end, ") are not within [0, C=", a.problem.classes, ")");
  const Tensor out = empty_cpu({a.problem.batch, end - begin}, a.dtype);
  const MatrixView view = {out.data_ptr(), end - begin, dtype_of(out, "logits")};
  Workspace workspace;
  with_accumulator(a.dtype, [&]<class T>(T) {
    logits<T>(a.problem, begin, end - begin, view, workspace, active_isa(a.problem.batch),
              a.threads(end - begin));
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sampled_softmax, CPU, m) {
  m.impl("exact_loss_rows", TORCH_BOX(&exact_loss_rows_cpu));
  m.impl("logits", TORCH_BOX(&logits_cpu));
}

}  // namespace ssc::ops::cpu
