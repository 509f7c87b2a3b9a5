// The negatives' share of a loss on the GPU, as in csrc/ops/cpu.
#include <optional>
#include <tuple>

#include "csrc/cuda/negatives/step.h"
#include "csrc/ops/cuda/gradients.h"
#include "csrc/ops/cuda/per_row.h"

namespace ssc::ops::cuda {
namespace {

using OptionalTensor = std::optional<Tensor>;
using ssc::cuda::NegativesProblem;

// The loss against samples that all rows share. Borrows from the operands and the rows.
struct Shared {
  Shared(const Operands& operands, const Rows& rows, const Tensor& ids_tensor,
         const OptionalTensor& log_count_tensor, const Sum& sum)
      : operands(operands),
        rows(rows),
        sum(sum),
        ids(operands.class_ids(ids_tensor, ids_tensor.numel(), "ids")),
        labels(operands.device.empty({operands.batch}, ScalarType::Long)),
        log_count(operands.counts(log_count_tensor, ids.numel(), "log_expected_count")) {
    STD_TORCH_CHECK(ids.numel() > 0, "ids must not be empty");
    check_launch(ssc::cuda::label_rows(data<bool>(rows.counted), operands.batch,
                                       data<int64_t>(labels), operands.device.stream()),
                 "label_rows");
  }

  template <class T>
  NegativesProblem<T> problem() const {
    using A = typename AccumulatorOf<T>::Type;
    LossProblem<T> p = operands.problem<T>();
    p.target = data<int64_t>(labels);
    p.ignore_index = ssc::cuda::kRowIgnored;
    p.ids = data<int64_t>(ids);
    p.log_expected_count = data<float>(log_count);
    p.samples = ids.numel();
    p.remove_accidental_hits = sum.remove_hits;
    return {p,
            data<A>(rows.target_logit),
            data<int64_t>(rows.hits),
            rows.hits.size(1),
            static_cast<A>(sum.softcap),
            sum.sigmoid};
  }

  const Operands& operands;
  const Rows& rows;
  Sum sum;
  Tensor ids, labels;
  OptionalTensor log_count;
};

LossAndPeak shared_rows(const Shared& shared) {
  const Operands& a = shared.operands;
  const Tensor loss = a.device.empty({a.batch}, a.row_dtype);
  const Tensor peak = a.device.empty({a.batch}, a.row_dtype);
  with_type(a.dtype, [&]<class T>(T*) {
    using A = typename AccumulatorOf<T>::Type;
    const ssc::cuda::NegativeRowsLayout layout =
        ssc::cuda::negative_rows_layout<T>(a.batch, shared.ids.numel(), a.device.multiprocessors());
    const Tensor workspace = a.device.empty({layout.bytes}, ScalarType::Byte);
    check_launch(
        ssc::cuda::negative_rows(shared.problem<T>(), {data<A>(loss), nullptr, data<A>(peak)},
                                 layout, workspace.data_ptr(), a.path<T>(), a.device.stream()),
        "negative_rows");
  });
  return {loss, peak};
}

Grads shared_grads(const Shared& shared, const Tensor& row_scale, bool sparse_grad) {
  const Operands& a = shared.operands;
  const Tensor scale = a.row_numbers(row_scale, "row_scale");
  const ClassOrder sorted(a, shared.ids, std::nullopt, ssc::cuda::kRowIgnored);
  const GradientTensors grads(a, sorted.count, sparse_grad);
  with_type(a.dtype, [&]<class T>(T*) {
    const int64_t samples = shared.ids.numel();
    const ssc::cuda::WorkspaceLayout layout =
        ssc::cuda::workspace_layout<T>(a.batch, a.dim, samples, a.device.multiprocessors(),
                                       ssc::cuda::negative_row_bytes<T>(samples));
    const Tensor workspace = a.device.empty({layout.bytes}, ScalarType::Byte);
    check_launch(
        ssc::cuda::negative_grads(shared.problem<T>(), grads.gradients<T>(scale, sorted), layout,
                                  workspace.data_ptr(), a.path<T>(), a.device.stream()),
        "negative_grads");
  });
  return {grads.input, grads.weight, grads.bias, grads.rows};
}

LossAndPeak negatives_rows(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                           const Tensor& target_logit, const Tensor& hits,
                           const OptionalTensor& counted, const OptionalTensor& ids,
                           const OptionalTensor& log_count, const OptionalTensor& key, int64_t kind,
                           int64_t num_classes, const OptionalTensor& table,
                           const OptionalTensor& probability_bits, int64_t num_drawable,
                           int64_t num_samples, int64_t method, const OptionalTensor& tries,
                           const OptionalTensor& exclude, bool corrected, double inv_temperature,
                           double softcap, bool remove_hits, bool sigmoid, int64_t products) {
  const Operands operands(input, weight, bias, inv_temperature, products);
  const Rows rows(target_logit, hits, counted, operands);
  const Source source = {
      ids,          log_count,   key,    {kind, num_classes, table, probability_bits},
      num_drawable, num_samples, method, tries,
      exclude,      corrected};
  const Sum sum = {softcap, remove_hits, sigmoid};
  if (source.of_rows()) return per_row_rows(operands, rows, source, sum);
  return shared_rows(Shared(operands, rows, *ids, log_count, sum));
}

Grads negatives_grads(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                      const Tensor& target_logit, const Tensor& hits, const OptionalTensor& counted,
                      const OptionalTensor& ids, const OptionalTensor& log_count,
                      const OptionalTensor& key, int64_t kind, int64_t num_classes,
                      const OptionalTensor& table, const OptionalTensor& probability_bits,
                      int64_t num_drawable, int64_t num_samples, int64_t method,
                      const OptionalTensor& tries, const OptionalTensor& exclude, bool corrected,
                      double inv_temperature, double softcap, bool remove_hits, bool sigmoid,
                      const Tensor& row_scale, bool sparse_grad, int64_t products) {
  const Operands operands(input, weight, bias, inv_temperature, products);
  const Rows rows(target_logit, hits, counted, operands);
  const Source source = {
      ids,          log_count,   key,    {kind, num_classes, table, probability_bits},
      num_drawable, num_samples, method, tries,
      exclude,      corrected};
  const Sum sum = {softcap, remove_hits, sigmoid};
  if (source.of_rows()) return per_row_grads(operands, rows, source, sum, row_scale, sparse_grad);
  return shared_grads(Shared(operands, rows, *ids, log_count, sum), row_scale, sparse_grad);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sampled_softmax, SSC_CUDA_KEY, m) {
  m.impl("negatives_rows", TORCH_BOX(&negatives_rows));
  m.impl("negatives_grads", TORCH_BOX(&negatives_grads));
}

}  // namespace ssc::ops::cuda
