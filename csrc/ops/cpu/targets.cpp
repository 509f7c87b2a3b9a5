// The targets' share of losses that are composed in Python.
#include "csrc/cpu/loss/targets.h"

#include <optional>

#include "csrc/ops/cpu/arguments.h"

namespace ssc::ops::cpu {
namespace {

struct Targets {
  Targets(const Tensor& input, const Tensor& weight, const Tensor& targets)
      : operands(input, weight, std::nullopt, 1, 0), target(torch::stable::contiguous(targets)) {
    const LossProblem& p = operands.problem;
    STD_TORCH_CHECK(target.dim() == 2 && target.size(0) == p.batch, "target must be [B, T]");
    problem = {p.input, p.weight, check_targets(target, p.classes), p.batch, target.size(1),
               p.dim,   p.classes};
  }

  // The elements of a [B, T] tensor or of one that is written to.
  template <class T>
  T* elements(const Tensor& t, const char* name) const {
    STD_TORCH_CHECK(t.scalar_type() == operands.dtype && t.is_contiguous(), name,
                    " must be contiguous and have the results' dtype");
    return static_cast<T*>(t.data_ptr());
  }

  ParallelFor threads() const { return operands.threads(problem.targets); }

  Operands operands;
  Tensor target;
  TargetProblem problem;
};

Tensor target_products_cpu(const Tensor& input, const Tensor& weight, const Tensor& target) {
  const Targets a(input, weight, target);
  const Tensor out = empty_cpu({a.problem.batch, a.problem.targets}, a.operands.dtype);
  with_accumulator(a.operands.dtype, [&]<class T>(T) {
    target_products<T>(a.problem, static_cast<T*>(out.data_ptr()), active_isa(a.problem.batch),
                       a.threads());
  });
  return out;
}

void add_target_grads_cpu(const Tensor& grad_input, const Tensor& grad_weight,
                          const Tensor& grad_bias, const Tensor& classes, const Tensor& input,
                          const Tensor& weight, const Tensor& target, const Tensor& coefficient,
                          const std::optional<Tensor>& bias_coefficient) {
  const Targets a(input, weight, target);
  const TargetProblem& p = a.problem;
  const int64_t rows = classes.numel(), pairs = p.batch * p.targets;
  check_int64(classes, "classes");
  STD_TORCH_CHECK(grad_input.numel() == p.batch * p.dim && grad_weight.numel() == rows * p.dim &&
                      coefficient.numel() == pairs,
                  "grad_input must be [B, D], grad_weight [N, D] and coefficient [B, T]");
  STD_TORCH_CHECK(!bias_coefficient.has_value() ||
                      (bias_coefficient->numel() == pairs && grad_bias.numel() == rows),
                  "bias_coefficient must be [B, T] and grad_bias [N]");
  with_accumulator(a.operands.dtype, [&]<class T>(T) {
    const T* const of_bias = bias_coefficient.has_value()
                                 ? a.elements<T>(*bias_coefficient, "bias_coefficient")
                                 : nullptr;
    const TargetGradients<T> gradients = {a.elements<T>(coefficient, "coefficient"),
                                          of_bias,
                                          integers(classes, "classes"),
                                          rows,
                                          a.elements<T>(grad_input, "grad_input"),
                                          a.elements<T>(grad_weight, "grad_weight"),
                                          a.elements<T>(grad_bias, "grad_bias")};
    Workspace workspace;
    STD_TORCH_CHECK(
        add_target_grads<T>(p, gradients, workspace, active_isa(a.problem.batch), a.threads()),
        "every target must be one of the classes");
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sampled_softmax, CPU, m) {
  m.impl("target_products", TORCH_BOX(&target_products_cpu));
  m.impl("add_target_grads", TORCH_BOX(&add_target_grads_cpu));
}

}  // namespace ssc::ops::cpu
