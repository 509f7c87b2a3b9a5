// Steps of row-sparse optimizers on the GPU, as in csrc/ops/cpu. Their numbers stay there, so that
// a step can be captured in a CUDA graph.
#include "csrc/ops/optim.h"

#include <optional>

#include "csrc/cuda/update/update.h"
#include "csrc/ops/cuda/arguments.h"

namespace ssc::ops::cuda {
namespace {

using OptionalTensor = std::optional<Tensor>;

template <class T>
T* writable(const OptionalTensor& t) {
  return t.has_value() ? static_cast<T*>(t->data_ptr()) : nullptr;
}

const double* number(const OptionalTensor& t, const char* name, const OnDevice& device) {
  if (!t.has_value()) return nullptr;
  device.check_here(t, name);
  STD_TORCH_CHECK(t->numel() == 1 && t->scalar_type() == ScalarType::Double, name,
                  " must be one float64 number");
  return data<double>(t);
}

void check_here(const UpdateTensors& t, const OnDevice& device) {
  device.check_here(t.values, "values");
  device.check_here(t.ids, "ids");
  device.check_here(t.order, "order");
  device.check_here(t.first, "first");
  device.check_here(t.second, "second");
  device.check_here(t.compensation, "compensation");
  device.check_here(t.last_step, "last_step");
  device.check_here(t.history, "history");
  device.check_here(t.step, "step");
  if (t.ids.has_value()) integers(*t.ids, "ids");
  if (t.order.has_value()) integers(*t.order, "order");
}

// Calls f with null pointers to the types of a parameter and of its states.
template <class F>
void with_types(const UpdateTensors& t, F&& f) {
  with_type(t.param.scalar_type(), [&]<class P>(P* p) {
    if (t.state_dtype() == ScalarType::BFloat16) {
      if constexpr (!std::is_same_v<P, double>) f(p, static_cast<__nv_bfloat16*>(nullptr));
    } else {
      f(p, static_cast<typename AccumulatorOf<P>::Type*>(nullptr));
    }
  });
}

void row_update_cuda(const Tensor& param, const OptionalTensor& values, const OptionalTensor& ids,
                     const OptionalTensor& order, const OptionalTensor& first,
                     const OptionalTensor& second, const OptionalTensor& compensation,
                     const OptionalTensor& last_step, const OptionalTensor& history,
                     int64_t horizon, const Tensor& step, int64_t rule, double lr,
                     const OptionalTensor& lr_tensor, double beta1, double beta2, double eps,
                     double l2, double decay, double lr_decay, double dampening, bool nesterov,
                     bool maximize, bool replay, bool plain_eps, int64_t rounding, int64_t seed,
                     const OptionalTensor& grad_scale, const OptionalTensor& found_inf) {
  const UpdateOptions options = {static_cast<UpdateRule>(rule),
                                 lr,
                                 beta1,
                                 beta2,
                                 eps,
                                 l2,
                                 decay,
                                 lr_decay,
                                 dampening,
                                 maximize ? -1.0 : 1.0,
                                 nesterov,
                                 replay,
                                 plain_eps};
  const UpdateTensors t = {param,        values,    ids,     order,   first, second,
                           compensation, last_step, history, horizon, step};
  const OnDevice device(param);
  check_here(t, device);
  const auto how = static_cast<Rounding>(rounding);
  const UpdateShape shape = check_update(t, options, how == Rounding::stochastic);
  STD_TORCH_CHECK(values.has_value() || last_step.has_value(), "settling needs last_step");
  const ssc::cuda::StepInputs inputs = {data<float>(step), number(lr_tensor, "lr", device),
                                        number(grad_scale, "grad_scale", device),
                                        number(found_inf, "found_inf", device)};
  const UpdateHistory past = {writable<double>(history), shape.capacity, shape.horizon};
  const bool owes = last_step.has_value();
  const int64_t bytes = ssc::cuda::update_rows_bytes(shape.count, ids.has_value(), owes);
  constexpr int64_t kNumbers = sizeof(ssc::cuda::StepNumbers);
  const Tensor numbers_tensor = device.empty({kNumbers}, ScalarType::Byte);
  const Tensor workspace = device.empty({bytes}, ScalarType::Byte);
  auto* const numbers = static_cast<ssc::cuda::StepNumbers*>(numbers_tensor.data_ptr());
  const cudaStream_t stream = device.stream();
  check_launch(ssc::cuda::begin_step(options, inputs, values.has_value(), numbers, stream),
               "begin_step");
  with_types(t, [&]<class P, class S>(P*, S*) {
    using T = typename AccumulatorOf<P>::Type;
    const bool row_wise = is_row_wise(options.rule);
    const ssc::cuda::RowUpdate<P, S> update = {data<P>(param),
                                               shape.rows,
                                               shape.stride,
                                               shape.dim,
                                               shape.total,
                                               data<P>(values),
                                               data<int64_t>(ids),
                                               data<int64_t>(order),
                                               shape.count,
                                               writable<S>(first),
                                               row_wise ? nullptr : writable<S>(second),
                                               row_wise ? writable<T>(second) : nullptr,
                                               writable<P>(compensation),
                                               writable<int32_t>(last_step),
                                               past,
                                               options.rule,
                                               how,
                                               static_cast<uint64_t>(seed)};
    check_launch(ssc::cuda::update_rows(update, numbers, workspace.data_ptr(), stream),
                 "update_rows");
  });
  if (!values.has_value()) return;
  check_launch(ssc::cuda::close_step(numbers, past, data<float>(step), stream), "close_step");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sampled_softmax, SSC_CUDA_KEY, m) {
  m.impl("row_update", TORCH_BOX(&row_update_cuda));
}

}  // namespace ssc::ops::cuda
