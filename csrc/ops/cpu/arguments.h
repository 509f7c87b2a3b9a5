// Tensors as the structs of csrc/cpu/loss/loss.h. Python has checked the arguments with messages
// for users; the checks here protect memory.
#pragma once

#include <algorithm>
#include <optional>

#include "csrc/cpu/loss/loss.h"
#include "csrc/ops/checks.h"
#include "csrc/ops/stable.h"

namespace ssc::ops::cpu {

inline DType dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    default:
      STD_TORCH_CHECK(false, name, " must be float32, bfloat16, float16 or float64");
  }
  return DType::f32;
}

// Calls f with a zero of the type in which tensors of `dtype` are summed.
template <class F>
decltype(auto) with_accumulator(ScalarType dtype, F&& f) {
  return dtype == ScalarType::Double ? f(double{}) : f(float{});
}

inline MatrixView matrix(const Tensor& t, const char* name) {
  check_matrix(t, name);
  return {t.data_ptr(), t.stride(0), dtype_of(t, name)};
}

// An optional [size] vector; `holder` keeps a contiguous copy alive.
inline Vector optional_vector(const std::optional<Tensor>& t, int64_t size, const char* name,
                              std::optional<Tensor>& holder) {
  if (!t.has_value()) return {nullptr, DType::f32};
  holder = contiguous_vector(*t, size, name);
  return {holder->data_ptr(), dtype_of(*holder, name)};
}

// The operands of every loss operator, as the problem that they pose.
struct Operands {
  Operands(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
           double inv_temperature, int64_t products)
      : dtype(is_double(input) ? ScalarType::Double : ScalarType::Float) {
    problem.input = matrix(input, "input");
    problem.weight = matrix(weight, "weight");
    problem.batch = input.size(0);
    problem.dim = input.size(1);
    problem.classes = weight.size(0);
    problem.inv_temperature = inv_temperature;
    problem.products = products_of(products);
    STD_TORCH_CHECK(weight.size(1) == problem.dim, "weight must be [C, D=", problem.dim, "], got [",
                    problem.classes, ", ", weight.size(1), "]");
    problem.bias = optional_vector(bias, problem.classes, "bias", bias_holder);
    STD_TORCH_CHECK(is_double(weight) == is_double(input) &&
                        (!bias.has_value() || is_double(*bias) == is_double(input)),
                    "input, weight and bias must all be float64, or none of them");
  }

  void set_target(const Tensor& of_rows) {
    target = contiguous_vector(of_rows, problem.batch, "target");
    problem.target = integers(*target, "target");
  }

  void check(const SamplePlan& plan) const {
    STD_TORCH_CHECK(plan.bad_target < 0, "target[", plan.bad_target,
                    "] = ", problem.target[std::max<int64_t>(plan.bad_target, 0)],
                    " is out of range: expected [0, C=", problem.classes, ")");
    STD_TORCH_CHECK(plan.bad_id < 0, "ids[", plan.bad_id,
                    "] is out of range: expected [0, C=", problem.classes, ")");
  }

  // torch's threads, or only the caller's where the matmuls are so small that waking another thread
  // costs what it saves (and milliseconds if its core is busy with something else).
  ParallelFor threads(int64_t samples) const {
    constexpr double kSerialProducts = 1 << 19;
    const double rows = static_cast<double>(problem.batch);
    const double products = rows * static_cast<double>(samples) * static_cast<double>(problem.dim);
    return products <= kSerialProducts ? serial() : torch_parallel_for();
  }

  LossProblem problem{};
  ScalarType dtype;  // of the row outputs
  std::optional<Tensor> target, bias_holder;
};

// [B], of the dtype of the row outputs.
inline Tensor row_numbers(const Tensor& t, const Operands& operands, const char* name) {
  const Tensor out = contiguous_vector(t, operands.problem.batch, name);
  STD_TORCH_CHECK(out.scalar_type() == operands.dtype, name, " must have the row outputs' dtype");
  return out;
}

// The rows of a negatives' loss: the logits r [B] that their sums are relative to, the classes
// [B, K] that are their hits, and which of them count.
struct Rows {
  Rows(const Tensor& target_logit_tensor, const Tensor& hits_tensor,
       const std::optional<Tensor>& counted_tensor, const Operands& operands)
      : target_logit(row_numbers(target_logit_tensor, operands, "target_logit")),
        hits(torch::stable::contiguous(hits_tensor)) {
    const int64_t batch = operands.problem.batch;
    STD_TORCH_CHECK(hits.dim() == 2 && hits.size(0) == batch, "hits must be [B, K]");
    integers(hits, "hits");
    if (!counted_tensor.has_value()) return;
    counted = contiguous_vector(*counted_tensor, batch, "counted");
    STD_TORCH_CHECK(counted->scalar_type() == ScalarType::Bool, "counted must be bool");
  }

  // [B], or null for all rows.
  const bool* mask() const {
    return counted.has_value() ? static_cast<const bool*>(counted->const_data_ptr()) : nullptr;
  }

  Tensor target_logit, hits;
  std::optional<Tensor> counted;
};

// A contiguous tensor of zeros, or, if all of it will be `overwritten`, of anything.
inline Tensor zeros_unless(std::initializer_list<int64_t> sizes, bool overwritten,
                           ScalarType dtype) {
  Tensor out = empty_cpu(sizes, dtype);
  return overwritten ? out : torch::stable::zero_(out);
}

// Classes, or −1 where there is no target.
inline const int64_t* check_targets(const Tensor& target, int64_t classes) {
  const int64_t* ids = integers(target, "target");
  for (int64_t j = 0; j < target.numel(); ++j) {
    STD_TORCH_CHECK(ids[j] >= -1 && ids[j] < classes, "target[", j, "] = ", ids[j],
                    " is out of range: expected [-1, C=", classes, ")");
  }
  return ids;
}

struct GradientDtypes {
  ScalarType input, weight, bias;
  bool has_bias;
};

// Those of the parameters.
inline GradientDtypes gradient_dtypes(const Tensor& input, const Tensor& weight,
                                      const std::optional<Tensor>& bias) {
  return {input.scalar_type(), weight.scalar_type(),
          (bias.has_value() ? *bias : weight).scalar_type(), bias.has_value()};
}

// The dtype of the sums, for gradients that are not finished.
inline GradientDtypes wide_dtypes(ScalarType sums, const std::optional<Tensor>& bias) {
  return {sums, sums, sums, bias.has_value()};
}

// The gradients' tensors, zero where nothing will be written; rows [1, N] are the touched classes
// of sparse ones.
struct GradientTensors {
  GradientTensors(const LossProblem& p, const GradientDtypes& dtypes, const SamplePlan& plan,
                  bool is_sparse)
      : has_bias(dtypes.has_bias),
        sparse(is_sparse),
        input(zeros_unless({p.batch, p.dim}, plan.rows == p.batch, dtypes.input)),
        weight(
            zeros_unless({sparse ? plan.touched_count : p.classes, p.dim}, sparse, dtypes.weight)),
        bias(zeros_unless({!has_bias ? 0
                           : sparse  ? plan.touched_count
                                     : p.classes},
                          sparse || !has_bias, dtypes.bias)),
        rows(empty_cpu({1, sparse ? plan.touched_count : 0}, ScalarType::Long)) {
    if (sparse) {
      std::copy_n(plan.touched, plan.touched_count, static_cast<int64_t*>(rows.data_ptr()));
    }
  }

  template <class T>
  Gradients<T> gradients(const T* row_scale) const {
    const int64_t dim = input.size(1);
    return {row_scale,
            {input.data_ptr(), dim, dtype_of(input, "grad_input")},
            {weight.data_ptr(), dim, dtype_of(weight, "grad_weight")},
            {has_bias ? bias.data_ptr() : nullptr, dtype_of(bias, "grad_bias")},
            sparse};
  }

  bool has_bias, sparse;
  Tensor input, weight, bias, rows;
};

// loss, lse, target_logit, error: zero for the rows that are ignored.
struct RowTensors {
  RowTensors(int64_t batch, int64_t counted, ScalarType dtype)
      : loss(zeros_unless({batch}, counted == batch, dtype)),
        lse(zeros_unless({batch}, counted == batch, dtype)),
        target_logit(zeros_unless({batch}, counted == batch, dtype)),
        error(zeros_unless({batch}, counted == batch, dtype)) {}

  template <class T>
  RowResults<T> results() const {
    return {static_cast<T*>(loss.data_ptr()), static_cast<T*>(lse.data_ptr()),
            static_cast<T*>(target_logit.data_ptr()), static_cast<T*>(error.data_ptr()), nullptr};
  }

  Tensor loss, lse, target_logit, error;
};

}  // namespace ssc::ops::cpu
