// The loss of csrc/cuda for the bench: one launcher per storage type and stage.
#include <algorithm>

#include "csrc/cuda/loss/forward.h"
#include "csrc/cuda/loss/step.h"
#include "csrc/simt/registry.h"

namespace {

using namespace ssc;
using namespace ssc::cuda;

template <class T>
using AccumulatorType = typename AccumulatorOf<T>::Type;

// The launchers' first parameters, in this order. major: of the compute capability.
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

// results: [4][batch]: loss, lse, target_logit, error. Without ids: the exact loss.
template <class T>
cudaError_t rows(SSC_PROBLEM_PARAMETERS, AccumulatorType<T>* results, int splits, void* workspace,
                 cudaStream_t stream) {
  const auto run = ids == nullptr ? exact_loss_rows<T> : loss_rows<T>;
  return run(SSC_PROBLEM, row_results<T>(results, batch), splits, workspace,
             matmul_path<T>(major, tf32), stream);
}

template <class T>
cudaError_t rows_bytes(int64_t batch, int splits, int64_t* bytes) {
  *bytes = loss_rows_bytes<T>(batch, splits);
  return cudaSuccess;
}

template <class T>
cudaError_t class_logits(SSC_PROBLEM_PARAMETERS, int64_t begin, int64_t end,
                         AccumulatorType<T>* out, int64_t out_stride, int splits,
                         cudaStream_t stream) {
  return logits(SSC_PROBLEM, begin, end, out, out_stride, splits, matmul_path<T>(major, tf32),
                stream);
}

// chunk_rows < 0, input_splits < 0: what the layout says. The workspace is as large as `bytes`
// promises.
template <class T>
cudaError_t grads(SSC_PROBLEM_PARAMETERS, AccumulatorType<T>* results,
                  const AccumulatorType<T>* row_scale, const int64_t* sorted, const int64_t* order,
                  bool sparse, T* grad_input, T* grad_weight, T* grad_bias, int64_t* grad_classes,
                  int multiprocessors, int64_t chunk_rows, int input_splits, void* workspace,
                  cudaStream_t stream) {
  WorkspaceLayout layout = workspace_layout<T>(batch, dim, samples, multiprocessors);
  if (chunk_rows > 0) layout.chunk_rows = std::min(layout.chunk_rows, chunk_rows);
  if (input_splits > 0) layout.input_splits = std::min(layout.input_splits, input_splits);
  const LossGradients<T> gradients = {row_scale, grad_input,      dim,         sorted,
                                      order,     samples + batch, sparse,      grad_weight,
                                      dim,       grad_bias,       grad_classes};
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

#define SSC_BIND(name, T)                                    \
  SSC_SIMT_LAUNCHER("loss_rows_" name, rows<T>);             \
  SSC_SIMT_LAUNCHER("loss_rows_bytes_" name, rows_bytes<T>); \
  SSC_SIMT_LAUNCHER("logits_" name, class_logits<T>);        \
  SSC_SIMT_LAUNCHER("loss_and_grads_" name, grads<T>);       \
  SSC_SIMT_LAUNCHER("workspace_layout_" name, layout<T>)
SSC_BIND("float32", float);
SSC_BIND("float64", double);
SSC_BIND("bfloat16", __nv_bfloat16);
SSC_BIND("float16", __half);
