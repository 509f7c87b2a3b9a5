// The stages of csrc/cuda/per_row/per_row.h for the bench, each with the problem's fields in their
// order.
#include "csrc/cuda/per_row/per_row.h"
#include "csrc/cuda/sample/sample.h"
#include "csrc/simt/registry.h"

namespace {

using namespace ssc::cuda;

template <class T>
using Acc = typename PerRowProblem<T>::Accumulator;

LogUniformProposal log_uniform(int64_t classes) {
  return log_uniform_proposal(static_cast<uint64_t>(classes));
}
WeightedProposal weighted(const int64_t* table, const double* probabilities, int64_t classes) {
  const auto* entries = reinterpret_cast<const uint64_t*>(table);
  return {ssc::make_alias_table(entries, static_cast<uint64_t>(classes)), probabilities};
}

// Rows whose draws are those of a RowFilter; where a race has been run, its arrivals.
struct FilteredRows {
  bool distinct;
  const int64_t* exclude;
  int64_t num_excluded;
  const double* times;
  const int64_t* arrivals;
  int64_t rows, samples;
  int64_t* ids;
  int64_t* num_draws;
  float* log_count;
  void* workspace;
  int64_t blocks;
};

template <class Proposal>
cudaError_t draw_filtered(const Proposal& proposal, const int64_t* key, const FilteredRows& f,
                          cudaStream_t stream) {
  const RowFilter filter = {f.distinct,
                            __builtin_nan(""),
                            nullptr,
                            f.exclude,
                            f.num_excluded,
                            num_classes(proposal),
                            f.arrivals != nullptr,
                            f.times,
                            f.arrivals};
  return draw_filtered_rows(proposal, key, filter, 0, f.rows, f.samples,
                            {f.ids, f.num_draws, f.log_count, nullptr, 0, nullptr}, f.workspace,
                            f.blocks, stream);
}

// Calls f(problem, rest...) for contiguous matrices.
#define SSC_PER_ROW_STAGE(T, stage, parameters, ...)                                             \
  SSC_SIMT_LAUNCHER(                                                                             \
      stage, +[](const T* input, const T* weight, const T* bias, const Acc<T>* target_logit,     \
                 const int64_t* hits, int64_t num_hits, bool remove_hits, const bool* counted,   \
                 const int64_t* ids, const float* log_count, int64_t batch, int64_t dim,         \
                 int64_t classes, int64_t samples, Acc<T> inv_temperature, Acc<T> softcap,       \
                 bool sigmoid, SSC_PER_ROW_UNPACK parameters, cudaStream_t stream) {             \
        const PerRowProblem<T> p = {                                                             \
            input,           weight,  dim,    dim,       bias,  target_logit, hits,    num_hits, \
            remove_hits,     counted, ids,    log_count, batch, dim,          classes, samples,  \
            inv_temperature, softcap, sigmoid};                                                  \
        return __VA_ARGS__;                                                                      \
      })
#define SSC_PER_ROW_UNPACK(...) __VA_ARGS__

#define SSC_PER_ROW_STAGES(T, name)                                                                \
  SSC_PER_ROW_STAGE(T, "score_rows_" name, (void* parts, int splits, Acc<T>* logits),              \
                    score_rows(p, static_cast<RowPart<Acc<T>>*>(parts), splits, logits, stream));  \
  SSC_PER_ROW_STAGE(T, "finish_rows_" name,                                                        \
                    (const void* parts, int splits, Acc<T>* loss, Acc<T>* peak, Acc<T>* lse),      \
                    finish_rows(p, static_cast<const RowPart<Acc<T>>*>(parts), splits, loss, peak, \
                                lse, stream));                                                     \
  SSC_PER_ROW_STAGE(T, "row_coefficients_" name,                                                   \
                    (const Acc<T>* lse, const Acc<T>* row_scale, Acc<T>* logits,                   \
                     int64_t* of_classes, int64_t* entries),                                       \
                    row_coefficients(p, lse, row_scale, logits, of_classes, entries, stream));     \
  SSC_PER_ROW_STAGE(T, "row_input_grad_" name, (const Acc<T>* coefficients, T* grad),              \
                    row_input_grad(p, coefficients, grad, dim, stream));                           \
  SSC_PER_ROW_STAGE(                                                                               \
      T, "row_class_grads_" name,                                                                  \
      (const int64_t* sorted, const int64_t* order, const Acc<T>* coefficients,                    \
       Acc<T>* grad_weight, Acc<T>* grad_bias, int64_t* grad_classes),                             \
      row_class_grads(                                                                             \
          p, {sorted, order, batch * samples, coefficients, grad_weight, grad_bias, grad_classes}, \
          stream))

}  // namespace

SSC_PER_ROW_STAGES(float, "float32");
SSC_PER_ROW_STAGES(__nv_bfloat16, "bfloat16");

SSC_SIMT_LAUNCHER(
    "draw_rows_log_uniform",
    +[](int64_t classes, const int64_t* key, int64_t first_row, int64_t rows, int64_t samples,
        int64_t* ids, float* log_count, cudaStream_t stream) {
      return draw_rows(log_uniform(classes), key, first_row, rows, samples, ids, log_count, stream);
    });
SSC_SIMT_LAUNCHER(
    "draw_rows_weighted", +[](const int64_t* table, const double* probabilities, int64_t classes,
                              const int64_t* key, int64_t first_row, int64_t rows, int64_t samples,
                              int64_t* ids, float* log_count, cudaStream_t stream) {
      return draw_rows(weighted(table, probabilities, classes), key, first_row, rows, samples, ids,
                       log_count, stream);
    });
SSC_SIMT_LAUNCHER(
    "filtered_rows_bytes",
    +[](int64_t num_excluded, int64_t samples, bool race, int64_t blocks, int64_t* bytes) {
      const RowFilter filter = {true, 0.0, nullptr, nullptr, num_excluded, 0, race};
      *bytes = filtered_rows_bytes(filter, samples, blocks);
      return cudaSuccess;
    });
SSC_SIMT_LAUNCHER(
    "draw_filtered_rows_log_uniform",
    +[](int64_t classes, const int64_t* key, bool distinct, const int64_t* exclude,
        int64_t num_excluded, const double* times, const int64_t* arrivals, int64_t rows,
        int64_t samples, int64_t* ids, int64_t* num_draws, float* log_count, void* workspace,
        int64_t blocks, cudaStream_t stream) {
      return draw_filtered(log_uniform(classes), key,
                           {distinct, exclude, num_excluded, times, arrivals, rows, samples, ids,
                            num_draws, log_count, workspace, blocks},
                           stream);
    });
SSC_SIMT_LAUNCHER(
    "draw_filtered_rows_weighted",
    +[](const int64_t* table, const double* probabilities, int64_t classes, const int64_t* key,
        bool distinct, const int64_t* exclude, int64_t num_excluded, const double* times,
        const int64_t* arrivals, int64_t rows, int64_t samples, int64_t* ids, int64_t* num_draws,
        float* log_count, void* workspace, int64_t blocks, cudaStream_t stream) {
      return draw_filtered(weighted(table, probabilities, classes), key,
                           {distinct, exclude, num_excluded, times, arrivals, rows, samples, ids,
                            num_draws, log_count, workspace, blocks},
                           stream);
    });
