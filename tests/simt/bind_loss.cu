// The loss of csrc/cuda for the bench: one launcher per storage type and stage.
#include <algorithm>

#include "csrc/cuda/loss_and_grads.h"
#include "csrc/simt/registry.h"

namespace {

using namespace ssc;
using namespace ssc::cuda;

template <class T>
using AccumulatorType = typename AccumulatorOf<T>::Type;

// What both launchers take first, in this order. major: of the compute capability.
#define SSC_PROBLEM_PARAMETERS                                                               \
  const T *input, const T *weight, const T *bias, const int64_t *target, const int64_t *ids, \
      const float *log_count, const float *target_log_count, int64_t batch, int64_t dim,     \
      int64_t classes, int64_t samples, int64_t input_stride, int64_t weight_stride,         \
      int64_t ignore_index, double inv_temperature, bool remove_hits, int major, bool tf32
#define SSC_PROBLEM                                                                             \
  LossProblem<T> {                                                                              \
    input, weight, input_stride, weight_stride, bias, target, ids, log_count, target_log_count, \
        batch, dim, classes, samples, ignore_index,                                             \
        static_cast<AccumulatorType<T>>(inv_temperature), remove_hits                           \
  }

template <class T>
RowResults<AccumulatorType<T>> row_results(AccumulatorType<T>* results, int64_t batch) {
  return {results, results + batch, results + 2 * batch, results + 3 * batch};
}

// results: [4][batch]: loss, lse, target_logit, error.
template <class T>
cudaError_t loss_rows(SSC_PROBLEM_PARAMETERS, AccumulatorType<T>* results, int splits,
                      OnlineLse<AccumulatorType<T>>* parts, uint8_t* beaten, cudaStream_t stream) {
  const LossProblem<T> problem = SSC_PROBLEM;
  const auto out = row_results<T>(results, batch);
  const RowParts<AccumulatorType<T>> row_parts = {parts, beaten, splits};
  cudaError_t error = target_logits(problem, out, stream);
  if (error == cudaSuccess) {
    error = score(problem, out, row_parts, static_cast<AccumulatorType<T>*>(nullptr), 0,
                  matmul_path<T>(major, tf32), stream);
  }
  return error == cudaSuccess ? finish_rows(problem, out, row_parts, stream) : error;
}

// chunk_rows < 0: what the layout says. The workspace is as large as `bytes` promises.
template <class T>
cudaError_t grads(SSC_PROBLEM_PARAMETERS, AccumulatorType<T>* results,
                  const AccumulatorType<T>* row_scale, const int64_t* sorted, const int64_t* order,
                  bool sparse, T* grad_input, T* grad_weight, T* grad_bias, int64_t* grad_classes,
                  int multiprocessors, int64_t chunk_rows, void* workspace, cudaStream_t stream) {
  WorkspaceLayout layout = workspace_layout<T>(batch, dim, samples, multiprocessors);
  if (chunk_rows > 0) layout.chunk_rows = std::min(layout.chunk_rows, chunk_rows);
  const LossGradients<T> gradients = {row_scale, grad_input,  dim, sorted,    order,
                                      sparse,    grad_weight, dim, grad_bias, grad_classes};
  return loss_and_grads(SSC_PROBLEM, row_results<T>(results, batch), gradients, layout, workspace,
                        matmul_path<T>(major, tf32), stream);
}

// Writes the layout's bytes, chunk_rows, score_splits and input_splits.
template <class T>
cudaError_t layout(int64_t batch, int64_t dim, int64_t samples, int multiprocessors, int64_t* out) {
  const WorkspaceLayout l = workspace_layout<T>(batch, dim, samples, multiprocessors);
  out[0] = l.bytes;
  out[1] = l.chunk_rows;
  out[2] = l.score_splits;
  out[3] = l.input_splits;
  return cudaSuccess;
}

}  // namespace

#define SSC_BIND(name, T)                              \
  SSC_SIMT_LAUNCHER("loss_rows_" name, loss_rows<T>);  \
  SSC_SIMT_LAUNCHER("loss_and_grads_" name, grads<T>); \
  SSC_SIMT_LAUNCHER("workspace_layout_" name, layout<T>)
SSC_BIND("float32", float);
SSC_BIND("float64", double);
SSC_BIND("bfloat16", __nv_bfloat16);
SSC_BIND("float16", __half);
