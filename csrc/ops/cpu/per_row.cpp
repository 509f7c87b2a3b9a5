// Losses against negatives of which every row has its own, on the CPU: given ids or a key.
#include "csrc/cpu/per_row/per_row.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "csrc/cpu/base/huge_pages.h"
#include "csrc/ops/cpu/arguments.h"
#include "csrc/ops/cpu/proposal.h"

namespace ssc::ops::cpu {
namespace {

// The arguments of all four operators but their samples.
struct RowArguments : Arguments {
  RowArguments(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
               const Tensor& target_logit_tensor, const Tensor& hits_tensor,
               const std::optional<Tensor>& counted_tensor, double inv_temperature)
      : Arguments(input, weight, bias, nullptr, inv_temperature),
        target_logit(contiguous_vector(target_logit_tensor, problem.batch, "target_logit")),
        hits(torch::stable::contiguous(check_matrix(hits_tensor, "hits"))) {
    STD_TORCH_CHECK(target_logit.scalar_type() == dtype,
                    "target_logit must have the row outputs' dtype");
    STD_TORCH_CHECK(hits.size(0) == problem.batch, "hits must be [B=", problem.batch, ", K]");
    integers(hits, "hits");
    if (!counted_tensor.has_value()) return;
    counted = contiguous_vector(*counted_tensor, problem.batch, "counted");
    STD_TORCH_CHECK(counted->scalar_type() == ScalarType::Bool, "counted must be bool");
  }

  template <class T>
  PerRowProblem<T> rows_problem(const RowIds& samples, double softcap, bool remove_hits,
                                bool sigmoid) const {
    return {problem.input,
            problem.weight,
            problem.bias,
            static_cast<const T*>(target_logit.data_ptr()),
            static_cast<const int64_t*>(hits.data_ptr()),
            hits.size(1),
            remove_hits,
            counted.has_value() ? static_cast<const bool*>(counted->data_ptr()) : nullptr,
            samples,
            problem.batch,
            problem.dim,
            problem.classes,
            problem.inv_temperature,
            softcap,
            sigmoid};
  }

  Tensor target_logit, hits;
  std::optional<Tensor> counted;
};

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
  DrawnIds(const RowDraws& row_draws, bool corrected, int64_t classes) : draws(row_draws) {
    STD_TORCH_CHECK(draws.proposal.num_classes <= static_cast<uint64_t>(classes),
                    "the proposal has ", draws.proposal.num_classes, " classes, weight only ",
                    classes);
    samples = {nullptr, {nullptr, DType::f32}, &draws, corrected, draws.num_samples};
  }

  RowDraws draws;
  RowIds samples;
};

using Rows = std::tuple<Tensor, Tensor>;

Rows run_rows(const RowArguments& a, const RowIds& samples, double softcap, bool remove_hits,
              bool sigmoid) {
  const Tensor loss = empty_cpu({a.problem.batch}, a.dtype);
  const Tensor peak = empty_cpu({a.problem.batch}, a.dtype);
  with_accumulator(a.dtype, [&]<class T>(T) {
    per_row_loss<T>(a.rows_problem<T>(samples, softcap, remove_hits, sigmoid),
                    static_cast<T*>(loss.data_ptr()), static_cast<T*>(peak.data_ptr()),
                    a.threads(samples.num_samples));
  });
  return {loss, peak};
}

using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// Zeros on huge pages, where there are enough of them: rows all over it are going to be written.
Tensor spread_zeros(std::initializer_list<int64_t> sizes, ScalarType dtype) {
  Tensor out = empty_cpu(sizes, dtype);
  advise_huge_pages(out.data_ptr(), static_cast<size_t>(out.numel()) * out.element_size());
  return torch::stable::zero_(out);
}

template <class T>
Grads grads_of(const RowArguments& a, const Tensor& input, const Tensor& weight,
               const std::optional<Tensor>& bias, const PerRowProblem<T>& p,
               const Tensor& row_scale, bool sparse_grad) {
  const ParallelFor threads = a.threads(p.samples.num_samples);
  const bool listed = sparse_grad || element_size(p.weight.dtype) != sizeof(T);
  const std::vector<int64_t> touched =
      listed ? touched_classes(p, threads) : std::vector<int64_t>();
  const auto count = static_cast<int64_t>(touched.size());
  const int64_t grad_size = sparse_grad ? count : p.classes;
  const Tensor grad_input = zeros_unless({p.batch, p.dim}, false, input.scalar_type());
  const Tensor grad_weight = spread_zeros({grad_size, p.dim}, weight.scalar_type());
  const Tensor grad_bias = zeros_unless({bias.has_value() ? grad_size : 0}, false,
                                        (bias.has_value() ? *bias : weight).scalar_type());
  const Tensor grad_rows = empty_cpu({1, sparse_grad ? count : 0}, ScalarType::Long);
  if (sparse_grad) {
    std::copy_n(touched.data(), count, static_cast<int64_t*>(grad_rows.data_ptr()));
  }
  const PerRowGradients<T> gradients = {
      static_cast<const T*>(row_scale.data_ptr()),
      {grad_input.data_ptr(), p.dim, p.input.dtype},
      {grad_weight.data_ptr(), p.dim, p.weight.dtype},
      {bias.has_value() ? grad_bias.data_ptr() : nullptr, p.bias.dtype},
      listed ? touched.data() : nullptr,
      listed ? count : p.classes,
      sparse_grad};
  per_row_grads<T>(p, gradients, threads);
  return {grad_input, grad_weight, grad_bias, grad_rows};
}

Grads run_grads(const RowArguments& a, const Tensor& input, const Tensor& weight,
                const std::optional<Tensor>& bias, const RowIds& samples, double softcap,
                bool remove_hits, bool sigmoid, const Tensor& row_scale_tensor, bool sparse_grad) {
  const Tensor row_scale = contiguous_vector(row_scale_tensor, a.problem.batch, "row_scale");
  STD_TORCH_CHECK(row_scale.scalar_type() == a.dtype, "row_scale must have the row outputs' dtype");
  return with_accumulator(a.dtype, [&]<class T>(T) {
    return grads_of<T>(a, input, weight, bias,
                       a.rows_problem<T>(samples, softcap, remove_hits, sigmoid), row_scale,
                       sparse_grad);
  });
}

using OptionalTensor = std::optional<Tensor>;

Rows per_row_rows(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                  const Tensor& target_logit, const Tensor& hits, const OptionalTensor& counted,
                  const Tensor& ids, const OptionalTensor& log_count, double inv_temperature,
                  double softcap, bool remove_hits, bool sigmoid) {
  const RowArguments a(input, weight, bias, target_logit, hits, counted, inv_temperature);
  const GivenIds given(ids, log_count, a.problem.batch);
  return run_rows(a, given.samples, softcap, remove_hits, sigmoid);
}

Grads per_row_grads_of(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                       const Tensor& target_logit, const Tensor& hits,
                       const OptionalTensor& counted, const Tensor& ids,
                       const OptionalTensor& log_count, double inv_temperature, double softcap,
                       bool remove_hits, bool sigmoid, const Tensor& row_scale, bool sparse_grad) {
  const RowArguments a(input, weight, bias, target_logit, hits, counted, inv_temperature);
  const GivenIds given(ids, log_count, a.problem.batch);
  return run_grads(a, input, weight, bias, given.samples, softcap, remove_hits, sigmoid, row_scale,
                   sparse_grad);
}

Rows keyed_rows(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                const Tensor& target_logit, const Tensor& hits, const OptionalTensor& counted,
                const Tensor& key, int64_t kind, int64_t num_classes, const OptionalTensor& table,
                const OptionalTensor& probability_bits, int64_t num_drawable, int64_t num_samples,
                int64_t method, const OptionalTensor& tries, const OptionalTensor& exclude,
                bool corrected, double inv_temperature, double softcap, bool remove_hits,
                bool sigmoid) {
  const RowArguments a(input, weight, bias, target_logit, hits, counted, inv_temperature);
  const Proposal proposal = proposal_of(kind, num_classes, table, probability_bits);
  const DrawnIds drawn(
      row_draws(key, a.problem.batch, proposal, num_drawable, num_samples, method, tries, exclude),
      corrected, a.problem.classes);
  return run_rows(a, drawn.samples, softcap, remove_hits, sigmoid);
}

Grads keyed_grads(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                  const Tensor& target_logit, const Tensor& hits, const OptionalTensor& counted,
                  const Tensor& key, int64_t kind, int64_t num_classes, const OptionalTensor& table,
                  const OptionalTensor& probability_bits, int64_t num_drawable, int64_t num_samples,
                  int64_t method, const OptionalTensor& tries, const OptionalTensor& exclude,
                  bool corrected, double inv_temperature, double softcap, bool remove_hits,
                  bool sigmoid, const Tensor& row_scale, bool sparse_grad) {
  const RowArguments a(input, weight, bias, target_logit, hits, counted, inv_temperature);
  const Proposal proposal = proposal_of(kind, num_classes, table, probability_bits);
  const DrawnIds drawn(
      row_draws(key, a.problem.batch, proposal, num_drawable, num_samples, method, tries, exclude),
      corrected, a.problem.classes);
  return run_grads(a, input, weight, bias, drawn.samples, softcap, remove_hits, sigmoid, row_scale,
                   sparse_grad);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sampled_softmax, CPU, m) {
  m.impl("per_row_rows", TORCH_BOX(&per_row_rows));
  m.impl("per_row_grads", TORCH_BOX(&per_row_grads_of));
  m.impl("keyed_rows", TORCH_BOX(&keyed_rows));
  m.impl("keyed_grads", TORCH_BOX(&keyed_grads));
}

}  // namespace ssc::ops::cpu
