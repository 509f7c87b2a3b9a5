// The loss operators on the GPU: tensors in, params structs out, kernels of csrc/cuda in between.
// Arguments were checked with a message for users in Python; what is checked here protects memory.
// Values are not looked at: an id outside [0, C) is for the kernels, which give NaN.
#include <optional>
#include <tuple>

#include "csrc/cuda/class_list.h"
#include "csrc/cuda/loss_and_grads.h"
#include "csrc/cuda/reduction.h"
#include "csrc/ops/cuda_device.h"
#include "csrc/ops/tensor_checks.h"

namespace ssc::ops {
namespace {

using cuda::AccumulatorOf;
using cuda::LossProblem;
using cuda::Precision;

// Calls f with a null pointer to the C++ type of a dtype.
template <class F>
void with_type(ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(static_cast<float*>(nullptr));
    case ScalarType::Double:
      return f(static_cast<double*>(nullptr));
    case ScalarType::BFloat16:
      return f(static_cast<__nv_bfloat16*>(nullptr));
    case ScalarType::Half:
      return f(static_cast<__half*>(nullptr));
    default:
      STD_TORCH_CHECK(false, "input must be float32, bfloat16, float16 or float64");
  }
}

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}
template <class T>
const T* data(const std::optional<Tensor>& t) {
  return t.has_value() ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

// The arguments that every loss operator has.
struct Arguments {
  Arguments(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
            const Tensor& target, const Tensor& ids, const std::optional<Tensor>& log_count,
            const std::optional<Tensor>& target_log_count, double inv_temperature,
            bool remove_accidental_hits, int64_t ignore_index, bool tf32)
      : device(input),
        input(check_matrix(input, "input")),
        weight(check_matrix(weight, "weight")),
        batch(input.size(0)),
        dim(input.size(1)),
        classes(weight.size(0)),
        samples(ids.numel()),
        ignore_index(ignore_index),
        inv_temperature(inv_temperature),
        remove_accidental_hits(remove_accidental_hits),
        precision(tf32 ? Precision::tf32 : Precision::exact),
        dtype(input.scalar_type()),
        row_dtype(is_double(input) ? ScalarType::Double : ScalarType::Float) {
    STD_TORCH_CHECK(weight.size(1) == dim, "weight must be [C, D=", dim, "], got [", classes, ", ",
                    weight.size(1), "]");
    STD_TORCH_CHECK(weight.scalar_type() == dtype && (!bias || bias->scalar_type() == dtype),
                    "the CUDA kernels take input, weight and bias of one dtype");
    this->target = contiguous_vector(target, batch, "target");
    this->ids = contiguous_vector(ids, samples, "ids");
    integers(target, "target");
    integers(ids, "ids");
    if (bias.has_value()) this->bias = contiguous_vector(*bias, classes, "bias");
    this->log_count = counts(log_count, samples, "log_expected_count");
    this->target_log_count = counts(target_log_count, batch, "target_log_expected_count");
    device.check_here(weight, "weight");
    device.check_here(bias, "bias");
    device.check_here(target, "target");
    device.check_here(ids, "ids");
  }

  template <class T>
  LossProblem<T> problem() const {
    return {data<T>(input),
            data<T>(weight),
            input.stride(0),
            weight.stride(0),
            data<T>(bias),
            data<int64_t>(target),
            data<int64_t>(ids),
            data<float>(log_count),
            data<float>(target_log_count),
            batch,
            dim,
            classes,
            samples,
            ignore_index,
            static_cast<typename AccumulatorOf<T>::Type>(inv_temperature),
            remove_accidental_hits};
  }

  OnDevice device;
  Tensor input, weight;
  std::optional<Tensor> bias, target, ids, log_count, target_log_count;
  int64_t batch, dim, classes, samples, ignore_index;
  double inv_temperature;
  bool remove_accidental_hits;
  Precision precision;
  ScalarType dtype, row_dtype;  // of the parameters, and of what is per row

 private:
  std::optional<Tensor> counts(const std::optional<Tensor>& t, int64_t size,
                               const char* name) const {
    if (!t.has_value()) return std::nullopt;
    device.check_here(*t, name);
    return contiguous_vector(torch::stable::to(*t, ScalarType::Float), size, name);
  }
};

using Rows = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// The losses alone: of a row, only (max, sum) of each split of the samples is stored.
template <class T>
void run_rows(const Arguments& a, const Rows& rows) {
  using A = typename AccumulatorOf<T>::Type;
  const LossProblem<T> problem = a.problem<T>();
  const cuda::RowResults<A> results = {data<A>(std::get<0>(rows)), data<A>(std::get<1>(rows)),
                                       data<A>(std::get<2>(rows)), data<A>(std::get<3>(rows))};
  const int splits = cuda::score_splits(a.batch, a.samples, a.device.multiprocessors());
  const Tensor lse = a.device.empty({splits, a.batch, 2}, a.row_dtype);
  const Tensor beaten = a.device.empty({splits, a.batch}, ScalarType::Byte);
  const cuda::RowParts<A> parts = {reinterpret_cast<OnlineLse<A>*>(lse.data_ptr()),
                                   data<uint8_t>(beaten), splits};
  const cudaStream_t stream = a.device.stream();
  check_launch(cuda::target_logits(problem, results, stream), "target_logits");
  check_launch(
      cuda::score(problem, results, parts, static_cast<A*>(nullptr), 0, a.precision, stream),
      "score");
  check_launch(cuda::finish_rows(problem, results, parts, stream), "finish_rows");
}

Rows loss_rows_cuda(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                    const Tensor& target, const Tensor& ids, const std::optional<Tensor>& log_count,
                    const std::optional<Tensor>& target_log_count, double inv_temperature,
                    bool remove_accidental_hits, int64_t ignore_index, bool tf32) {
  const Arguments a(input, weight, bias, target, ids, log_count, target_log_count, inv_temperature,
                    remove_accidental_hits, ignore_index, tf32);
  const auto row = [&] { return a.device.empty({a.batch}, a.row_dtype); };
  const Rows rows = {row(), row(), row(), row()};
  with_type(a.dtype, [&]<class T>(T*) { run_rows<T>(a, rows); });
  return rows;
}

// Samples and targets sorted by class, [S + B] each.
struct ClassOrder {
  explicit ClassOrder(const Arguments& a)
      : classes(a.device.empty({a.samples + a.batch}, ScalarType::Long)),
        order(a.device.empty({a.samples + a.batch}, ScalarType::Long)) {
    const int64_t count = a.samples + a.batch;
    STD_TORCH_CHECK(count < int64_t{1} << 31, "samples and rows together must be below 2^31, got ",
                    count);
    const cudaStream_t stream = a.device.stream();
    const Tensor listed = a.device.empty({2, count}, ScalarType::Long);
    auto* const unsorted = data<int64_t>(listed);
    check_launch(
        cuda::list_classes(data<int64_t>(a.ids), a.samples, data<int64_t>(a.target), a.batch,
                           a.classes, a.ignore_index, unsorted, unsorted + count, stream),
        "list_classes");
    const auto sort = [&](void* temporary, size_t& bytes) {
      check_launch(
          cuda::sort_classes(temporary, bytes, unsorted, unsorted + count, count, a.classes,
                             data<int64_t>(classes), data<int64_t>(order), stream),
          "sort_classes");
    };
    size_t bytes = 0;
    sort(nullptr, bytes);
    const Tensor temporary = a.device.empty({static_cast<int64_t>(bytes) + 1}, ScalarType::Byte);
    sort(temporary.data_ptr(), bytes);
  }

  Tensor classes, order;
};

using LossAndGrads = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Sparse gradients have S + B rows, because how many classes are distinct is not known here: the
// first row of a class has its gradient, and others, for it or for class 0, are zeros.
LossAndGrads loss_and_grads_cuda(const Tensor& input, const Tensor& weight,
                                 const std::optional<Tensor>& bias, const Tensor& target,
                                 const Tensor& ids, const std::optional<Tensor>& log_count,
                                 const std::optional<Tensor>& target_log_count,
                                 double inv_temperature, bool remove_accidental_hits,
                                 int64_t ignore_index, const std::optional<Tensor>& row_scale,
                                 bool mean, bool sparse_grad, bool tf32) {
  const Arguments a(input, weight, bias, target, ids, log_count, target_log_count, inv_temperature,
                    remove_accidental_hits, ignore_index, tf32);
  const OnDevice& device = a.device;
  const cudaStream_t stream = device.stream();
  Tensor scale = device.empty({row_scale.has_value() ? 0 : a.batch}, a.row_dtype);
  if (row_scale.has_value()) {
    device.check_here(*row_scale, "row_scale");
    scale = contiguous_vector(*row_scale, a.batch, "row_scale");
    STD_TORCH_CHECK(scale.scalar_type() == a.row_dtype,
                    "row_scale must have the row outputs' dtype");
  }
  const Tensor total = device.empty({}, a.row_dtype);
  const Tensor rows = device.empty({4, a.batch}, a.row_dtype);
  const Tensor grad_input = device.empty({a.batch, a.dim}, a.dtype);
  const int64_t grad_size = sparse_grad ? a.samples + a.batch : a.classes;
  Tensor grad_weight = device.empty({grad_size, a.dim}, a.dtype);
  Tensor grad_bias = device.empty({bias.has_value() ? grad_size : 0}, a.dtype);
  const Tensor grad_rows = device.empty({1, sparse_grad ? grad_size : 0}, ScalarType::Long);
  if (!sparse_grad) {
    torch::stable::zero_(grad_weight);
    torch::stable::zero_(grad_bias);
  }
  const ClassOrder sorted(a);
  with_type(a.dtype, [&]<class T>(T*) {
    using A = typename AccumulatorOf<T>::Type;
    if (!row_scale.has_value()) {
      check_launch(cuda::row_factors(data<int64_t>(a.target), a.batch, a.ignore_index, mean,
                                     data<A>(scale), stream),
                   "row_factors");
    }
    const cuda::LossGradients<T> gradients = {data<A>(scale),
                                              data<T>(grad_input),
                                              a.dim,
                                              data<int64_t>(sorted.classes),
                                              data<int64_t>(sorted.order),
                                              sparse_grad,
                                              data<T>(grad_weight),
                                              a.dim,
                                              bias.has_value() ? data<T>(grad_bias) : nullptr,
                                              sparse_grad ? data<int64_t>(grad_rows) : nullptr};
    A* const loss = data<A>(rows);
    const cuda::RowResults<A> results = {loss, loss + a.batch, loss + 2 * a.batch,
                                         loss + 3 * a.batch};
    const cuda::WorkspaceLayout layout =
        cuda::workspace_layout<T>(a.batch, a.dim, a.samples, device.multiprocessors());
    const Tensor workspace = device.empty({layout.bytes}, ScalarType::Byte);
    check_launch(cuda::loss_and_grads(a.problem<T>(), results, gradients, layout,
                                      workspace.data_ptr(), a.precision, stream),
                 "loss_and_grads");
    check_launch(cuda::total_loss(data<A>(scale), results.loss, a.batch, data<A>(total), stream),
                 "total_loss");
  });
  return {total, rows, grad_input, grad_weight, grad_bias, grad_rows};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sampled_softmax, SSC_CUDA_KEY, m) {
  m.impl("loss_rows", TORCH_BOX(&loss_rows_cuda));
  m.impl("loss_and_grads", TORCH_BOX(&loss_and_grads_cuda));
}

}  // namespace ssc::ops
