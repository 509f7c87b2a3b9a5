// The loss operators on the GPU: tensors in, params structs out, kernels of csrc/cuda in between.
// Arguments were checked with a message for users in Python; what is checked here protects memory.
// Values are not looked at: an id outside [0, C) is for the kernels, which give NaN.
#include <optional>
#include <tuple>

#include "csrc/cuda/class_list.h"
#include "csrc/cuda/loss_and_grads.h"
#include "csrc/cuda/loss_rows.h"
#include "csrc/cuda/reduction.h"
#include "csrc/ops/parameters_cuda.h"

namespace ssc::ops {
namespace {

// What the sampled loss takes beside the parameters.
struct Arguments : Parameters {
  Arguments(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
            const Tensor& target, const Tensor& ids, const std::optional<Tensor>& log_count,
            const std::optional<Tensor>& target_log_count, double inv_temperature,
            bool remove_accidental_hits, int64_t ignore_index, bool tf32)
      : Parameters(input, weight, bias, inv_temperature, tf32),
        target(class_ids(target, batch, "target")),
        ids(class_ids(ids, ids.numel(), "ids")),
        log_count(counts(log_count, ids.numel(), "log_expected_count")),
        target_log_count(counts(target_log_count, batch, "target_log_expected_count")),
        samples(ids.numel()),
        ignore_index(ignore_index),
        remove_accidental_hits(remove_accidental_hits) {}

  template <class T>
  LossProblem<T> problem() const {
    LossProblem<T> p = Parameters::problem<T>();
    p.target = data<int64_t>(target);
    p.ids = data<int64_t>(ids);
    p.log_expected_count = data<float>(log_count);
    p.target_log_expected_count = data<float>(target_log_count);
    p.samples = samples;
    p.ignore_index = ignore_index;
    p.remove_accidental_hits = remove_accidental_hits;
    return p;
  }

  Tensor target, ids;
  std::optional<Tensor> log_count, target_log_count;
  int64_t samples, ignore_index;
  bool remove_accidental_hits;

 private:
  std::optional<Tensor> counts(const std::optional<Tensor>& t, int64_t size,
                               const char* name) const {
    if (!t.has_value()) return std::nullopt;
    device.check_here(*t, name);
    return contiguous_vector(torch::stable::to(*t, ScalarType::Float), size, name);
  }
};

using Rows = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Rows loss_rows_cuda(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                    const Tensor& target, const Tensor& ids, const std::optional<Tensor>& log_count,
                    const std::optional<Tensor>& target_log_count, double inv_temperature,
                    bool remove_accidental_hits, int64_t ignore_index, bool tf32) {
  const Arguments a(input, weight, bias, target, ids, log_count, target_log_count, inv_temperature,
                    remove_accidental_hits, ignore_index, tf32);
  const auto row = [&] { return a.device.empty({a.batch}, a.row_dtype); };
  const Rows rows = {row(), row(), row(), row()};
  const auto& [loss, lse, target_logit, error] = rows;
  with_type(a.dtype, [&]<class T>(T*) {
    using A = typename AccumulatorOf<T>::Type;
    const int splits = a.splits(a.samples);
    const Tensor workspace =
        a.device.empty({cuda::loss_rows_bytes<T>(a.batch, splits)}, ScalarType::Byte);
    check_launch(
        cuda::loss_rows(a.problem<T>(),
                        {data<A>(loss), data<A>(lse), data<A>(target_logit), data<A>(error)},
                        splits, workspace.data_ptr(), a.path<T>(), a.device.stream()),
        "loss_rows");
  });
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
                                      workspace.data_ptr(), a.path<T>(), stream),
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
