#include "csrc/ops/cpu/per_row.h"

#include <algorithm>
#include <optional>

#include "csrc/cpu/base/huge_pages.h"
#include "csrc/cpu/per_row/per_row.h"
#include "csrc/ops/cpu/proposal.h"

namespace ssc::ops::cpu {
namespace {

// The samples as given.
struct GivenIds {
  GivenIds(const Tensor& ids_tensor, const std::optional<Tensor>& log_count_tensor, int64_t batch)
      : ids(torch::stable::contiguous(check_matrix(ids_tensor, "ids"))) {
    STD_TORCH_CHECK(ids.size(0) == batch, "ids must be [B=", batch, ", S]");
    samples.ids = integers(ids, "ids");
    samples.num_samples = ids.size(1);
    samples.log_count = {nullptr, DType::f32};
    if (!log_count_tensor.has_value()) return;
    log_count = torch::stable::contiguous(check_matrix(*log_count_tensor, "log_expected_count"));
    STD_TORCH_CHECK(log_count->size(0) == batch && log_count->size(1) == samples.num_samples,
                    "log_expected_count must have the shape of ids");
    samples.log_count = {log_count->data_ptr(), dtype_of(*log_count, "log_expected_count")};
  }

  Tensor ids;
  std::optional<Tensor> log_count;
  RowIds samples{};
};

// The samples as a key gives them.
struct DrawnIds {
  DrawnIds(const Source& s, int64_t batch, int64_t classes)
      : draws(row_draws(*s.key, batch, proposal_of(s.proposal), s.num_drawable, s.num_samples,
                        s.method, s.tries, s.exclude)) {
    STD_TORCH_CHECK(draws.proposal.num_classes <= static_cast<uint64_t>(classes),
                    "the proposal has ", draws.proposal.num_classes, " classes, weight only ",
                    classes);
    samples = {nullptr, {nullptr, DType::f32}, &draws, s.corrected, draws.num_samples};
  }

  RowDraws draws;
  RowIds samples;
};

template <class T>
PerRowProblem<T> problem_of(const Operands& operands, const Rows& rows, const RowIds& samples,
                            const Sum& sum) {
  const LossProblem& p = operands.problem;
  return {p.input,
          p.weight,
          p.bias,
          static_cast<const T*>(rows.target_logit.data_ptr()),
          static_cast<const int64_t*>(rows.hits.data_ptr()),
          rows.hits.size(1),
          sum.remove_hits,
          rows.mask(),
          samples,
          p.batch,
          p.dim,
          p.classes,
          p.inv_temperature,
          sum.softcap,
          sum.sigmoid};
}

// Calls f with the samples as csrc/cpu takes them.
template <class F>
auto with_samples(const Operands& operands, const Source& source, F&& f) {
  if (source.key.has_value()) {
    return f(DrawnIds(source, operands.problem.batch, operands.problem.classes).samples);
  }
  return f(GivenIds(*source.ids, source.log_count, operands.problem.batch).samples);
}

// Zeros on huge pages, where there are enough of them: rows all over it are going to be written.
Tensor spread_zeros(std::initializer_list<int64_t> sizes, ScalarType dtype) {
  Tensor out = empty_cpu(sizes, dtype);
  advise_huge_pages(out.data_ptr(), static_cast<size_t>(out.numel()) * out.element_size());
  return torch::stable::zero_(out);
}

template <class T>
Grads grads_of(const Operands& operands, const PerRowProblem<T>& p, const Tensor& row_scale,
               const GradientDtypes& dtypes, bool sparse_grad) {
  const ParallelFor threads = operands.threads(p.samples.num_samples);
  const bool listed = sparse_grad || element_size(p.weight.dtype) != sizeof(T);
  const std::vector<int64_t> touched =
      listed ? touched_classes(p, threads) : std::vector<int64_t>();
  const auto count = static_cast<int64_t>(touched.size());
  const int64_t grad_size = sparse_grad ? count : p.classes;
  const Tensor grad_input = zeros_unless({p.batch, p.dim}, false, dtypes.input);
  const Tensor grad_weight = spread_zeros({grad_size, p.dim}, dtypes.weight);
  const Tensor grad_bias = zeros_unless({dtypes.has_bias ? grad_size : 0}, false, dtypes.bias);
  const Tensor grad_rows = empty_cpu({1, sparse_grad ? count : 0}, ScalarType::Long);
  if (sparse_grad) {
    std::copy_n(touched.data(), count, static_cast<int64_t*>(grad_rows.data_ptr()));
  }
  const PerRowGradients<T> gradients = {
      static_cast<const T*>(row_scale.data_ptr()),
      {grad_input.data_ptr(), p.dim, p.input.dtype},
      {grad_weight.data_ptr(), p.dim, p.weight.dtype},
      {dtypes.has_bias ? grad_bias.data_ptr() : nullptr, p.bias.dtype},
      listed ? touched.data() : nullptr,
      listed ? count : p.classes,
      sparse_grad};
  per_row_grads<T>(p, gradients, threads);
  return {grad_input, grad_weight, grad_bias, grad_rows};
}

}  // namespace

LossAndPeak per_row_rows(const Operands& operands, const Rows& rows, const Source& source,
                         const Sum& sum) {
  const Tensor loss = empty_cpu({operands.problem.batch}, operands.dtype);
  const Tensor peak = empty_cpu({operands.problem.batch}, operands.dtype);
  with_samples(operands, source, [&](const RowIds& samples) {
    with_accumulator(operands.dtype, [&]<class T>(T) {
      per_row_loss<T>(problem_of<T>(operands, rows, samples, sum), static_cast<T*>(loss.data_ptr()),
                      static_cast<T*>(peak.data_ptr()), operands.threads(samples.num_samples));
    });
  });
  return {loss, peak};
}

Grads per_row_grads(const Operands& operands, const Rows& rows, const Source& source,
                    const Sum& sum, const Tensor& row_scale, const GradientDtypes& dtypes,
                    bool sparse_grad) {
  const Tensor scale = row_numbers(row_scale, operands, "row_scale");
  return with_samples(operands, source, [&](const RowIds& samples) {
    return with_accumulator(operands.dtype, [&]<class T>(T) {
      return grads_of<T>(operands, problem_of<T>(operands, rows, samples, sum), scale, dtypes,
                         sparse_grad);
    });
  });
}

}  // namespace ssc::ops::cpu
