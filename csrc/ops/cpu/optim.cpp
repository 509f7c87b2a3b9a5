// Steps of row-sparse optimizers, and the payment of what untouched rows owe.
#include "csrc/ops/optim.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>

#include "csrc/cpu/update/update.h"
#include "csrc/ops/cpu/arguments.h"

namespace ssc::ops::cpu {
namespace {

using OptionalTensor = std::optional<Tensor>;

void* data_of(const OptionalTensor& t) { return t.has_value() ? t->data_ptr() : nullptr; }

RowUpdate row_update_of(const UpdateTensors& t, const UpdateOptions& options, int64_t rounding,
                        int64_t seed) {
  RowUpdate update{};
  update.param_dtype = dtype_of(t.param, "param");
  update.state_dtype = update.param_dtype == DType::f64 ? DType::f64 : DType::f32;
  if (t.state_dtype() == ScalarType::BFloat16) update.state_dtype = DType::bf16;
  const bool stochastic = static_cast<Rounding>(rounding) == Rounding::stochastic;
  const UpdateShape shape = check_update(t, options, stochastic);
  update.param = t.param.data_ptr();
  update.rows = shape.rows;
  update.stride = shape.stride;
  update.dim = shape.dim;
  update.total = shape.total;
  update.count = shape.count;
  update.ids = t.ids.has_value() ? integers(*t.ids, "ids") : nullptr;
  update.order = t.order.has_value() ? integers(*t.order, "order") : nullptr;
  update.values = t.values.has_value() ? t.values->const_data_ptr() : nullptr;
  update.first = data_of(t.first);
  update.second = data_of(t.second);
  update.compensation = data_of(t.compensation);
  update.last_step = static_cast<int32_t*>(data_of(t.last_step));
  update.history = {static_cast<double*>(data_of(t.history)), shape.capacity, shape.horizon};
  update.options = options;
  update.rounding = static_cast<Rounding>(rounding);
  update.seed = static_cast<uint64_t>(seed);
  return update;
}

double number(const OptionalTensor& t, double otherwise) {
  if (!t.has_value()) return otherwise;
  STD_TORCH_CHECK(t->numel() == 1 && t->scalar_type() == ScalarType::Double,
                  "lr, grad_scale and found_inf must be one float64 number");
  return *static_cast<const double*>(t->const_data_ptr());
}

// The first of `count` ids outside [0, rows), or −1.
int64_t first_bad_id(const int64_t* ids, int64_t count, int64_t rows) {
  const auto outside = [&](int64_t n) {
    return static_cast<uint64_t>(ids[n]) >= static_cast<uint64_t>(rows);
  };
  constexpr int64_t kBlock = 256;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, count);
    bool any = false;  // without a branch for each id, which would be slower than reading it
    for (int64_t n = begin; n < end; ++n) any |= outside(n);
    if (!any) continue;
    while (!outside(begin)) ++begin;
    return begin;
  }
  return -1;
}

void row_update_cpu(const Tensor& param, const OptionalTensor& values, const OptionalTensor& ids,
                    const OptionalTensor& order, const OptionalTensor& first,
                    const OptionalTensor& second, const OptionalTensor& compensation,
                    const OptionalTensor& last_step, const OptionalTensor& history, int64_t horizon,
                    const Tensor& step, int64_t rule, double lr, const OptionalTensor& lr_tensor,
                    double beta1, double beta2, double eps, double l2, double decay,
                    double lr_decay, double dampening, bool nesterov, bool maximize, bool replay,
                    bool plain_eps, int64_t rounding, int64_t seed,
                    const OptionalTensor& grad_scale, const OptionalTensor& found_inf) {
  if (number(found_inf, 0.0) != 0.0) return;
  const double scale = (maximize ? -1.0 : 1.0) / number(grad_scale, 1.0);
  const UpdateOptions options = {static_cast<UpdateRule>(rule),
                                 number(lr_tensor, lr),
                                 beta1,
                                 beta2,
                                 eps,
                                 l2,
                                 decay,
                                 lr_decay,
                                 dampening,
                                 scale,
                                 nesterov,
                                 replay,
                                 plain_eps};
  const UpdateTensors tensors = {param,        values,    ids,     order,   first, second,
                                 compensation, last_step, history, horizon, step};
  const RowUpdate update = row_update_of(tensors, options, rounding, seed);
  auto* steps = static_cast<float*>(step.data_ptr());
  if (values.has_value()) {
    update_rows(update, steps, active_isa(), torch_parallel_for());
  } else {
    STD_TORCH_CHECK(update.last_step != nullptr, "settling needs last_step");
    settle_rows(update, steps, active_isa(), torch_parallel_for());
  }
}

std::tuple<int64_t, int64_t> gradient_faults_cpu(const Tensor& values, const OptionalTensor& ids,
                                                 int64_t rows, bool finite) {
  int64_t bad_id = -1;
  if (ids.has_value()) {
    bad_id = first_bad_id(integers(*ids, "ids"), ids->numel(), rows);
  }
  if (!finite || values.numel() == 0) return {bad_id, -1};
  const int64_t count = values.size(0), dim = values.numel() / count;
  STD_TORCH_CHECK(values.is_contiguous(), "values must be contiguous");
  constexpr int64_t kSerialElements = 1 << 16;
  const bool few = values.numel() <= kSerialElements;
  return {bad_id, first_nonfinite_row(values.const_data_ptr(), dtype_of(values, "values"), count,
                                      dim, active_isa(), few ? serial() : torch_parallel_for())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sampled_softmax, CPU, m) {
  m.impl("row_update", TORCH_BOX(&row_update_cpu));
  m.impl("gradient_faults", TORCH_BOX(&gradient_faults_cpu));
}

}  // namespace ssc::ops::cpu
