// The tensors of a row update, and the checks of them that protect memory, the same on every device.
#pragma once

#include <optional>

#include "csrc/core/row_update.h"
#include "csrc/ops/checks.h"

namespace ssc::ops {

struct UpdateTensors {
  const Tensor& param;
  const std::optional<Tensor>&values, &ids, &order, &first, &second, &compensation, &last_step,
      &history;
  int64_t horizon;
  const Tensor& step;

  // float32 or float64 without moments.
  ScalarType state_dtype() const {
    if (first.has_value()) return first->scalar_type();
    if (second.has_value()) return second->scalar_type();
    return is_double(param) ? ScalarType::Double : ScalarType::Float;
  }
};

struct UpdateShape {
  int64_t rows, dim, stride, total, count, capacity, horizon;
};

// Rows so long that a thread, or a warp, has some work.
constexpr int64_t kFlatRow = 1024;

// param [C, D] or [C], with unit stride along D. Where every element is on its own, and random bits
// don't belong to rows, a contiguous parameter is taken in rows of kFlatRow elements.
inline UpdateShape check_update(const UpdateTensors& t, const UpdateOptions& options,
                                bool stochastic) {
  STD_TORCH_CHECK(t.param.dim() == 1 || t.param.dim() == 2, "param must be [C, D] or [C]");
  UpdateShape s{};
  s.rows = t.param.size(0);
  s.dim = t.param.dim() == 2 ? t.param.size(1) : 1;
  s.total = t.param.numel();
  s.stride = t.param.stride(0);
  STD_TORCH_CHECK(t.param.dim() == 1 || s.dim <= 1 || t.param.stride(1) == 1,
                  "param's rows must be contiguous");
  s.count = t.ids.has_value() ? t.ids->numel() : s.rows;
  if (t.values.has_value()) {
    STD_TORCH_CHECK(t.values->is_contiguous() && t.values->numel() == s.count * s.dim &&
                        t.values->scalar_type() == t.param.scalar_type(),
                    "values must be [N, D], contiguous, of param's dtype");
  }
  const auto of_elements = [&](const std::optional<Tensor>& x, const char* name) {
    STD_TORCH_CHECK(!x.has_value() || (x->is_contiguous() && x->numel() == s.total), name,
                    " must be contiguous and as large as param");
  };
  of_elements(t.first, "first");
  of_elements(t.compensation, "compensation");
  if (is_row_wise(options.rule)) {
    const ScalarType numbers = is_double(t.param) ? ScalarType::Double : ScalarType::Float;
    STD_TORCH_CHECK(t.second.has_value() && t.second->is_contiguous() &&
                        t.second->numel() == s.rows && t.second->scalar_type() == numbers,
                    "second must have a float32 (float64 for float64) number for each row");
  } else {
    of_elements(t.second, "second");
    STD_TORCH_CHECK(!t.first.has_value() || !t.second.has_value() ||
                        t.first->scalar_type() == t.second->scalar_type(),
                    "first and second must have one dtype");
  }
  STD_TORCH_CHECK(!is_adam(options.rule) || (t.first.has_value() && t.second.has_value()),
                  "Adam needs two moments");
  STD_TORCH_CHECK(!is_adagrad(options.rule) || t.second.has_value(), "Adagrad needs a sum");
  const ScalarType wide = is_double(t.param) ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(t.state_dtype() == wide ||
                      (t.state_dtype() == ScalarType::BFloat16 && wide == ScalarType::Float),
                  "moments must be float32 or bfloat16, float64 for a float64 parameter");
  STD_TORCH_CHECK(t.step.numel() == 1 && t.step.scalar_type() == ScalarType::Float,
                  "step must be one float32 number");
  STD_TORCH_CHECK(t.last_step.has_value() == t.history.has_value(),
                  "last_step and history go together");
  if (t.history.has_value()) {
    const Tensor& h = *t.history;
    STD_TORCH_CHECK(h.dim() == 2 && h.size(0) == kHistoryColumns && h.is_contiguous() &&
                        h.scalar_type() == ScalarType::Double,
                    "history must be float64 [", static_cast<int>(kHistoryColumns), ", steps]");
    STD_TORCH_CHECK(t.last_step->numel() == s.rows && t.last_step->is_contiguous() &&
                        t.last_step->scalar_type() == ScalarType::Int,
                    "last_step must be int32 [C]");
    s.capacity = h.size(1);
    s.horizon = t.horizon;
    STD_TORCH_CHECK(s.horizon >= 0 && s.horizon < s.capacity, "horizon must be below the capacity");
  }
  if (t.ids.has_value()) {
    STD_TORCH_CHECK(t.ids->dim() == 1 && t.ids->is_contiguous(), "ids must be a vector");
    STD_TORCH_CHECK(!t.order.has_value() || t.order->numel() == s.count, "order must be like ids");
  } else if (t.values.has_value() && !t.last_step.has_value() && !is_row_wise(options.rule) &&
             t.param.is_contiguous() && s.total > 0 && !stochastic &&
             t.state_dtype() != ScalarType::BFloat16) {
    s.dim = s.stride = kFlatRow;
    s.count = s.rows = (s.total + kFlatRow - 1) / kFlatRow;
  }
  return s;
}

}  // namespace ssc::ops
