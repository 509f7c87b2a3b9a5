// The general negatives of csrc/cuda for the bench: launchers per storage type.
#include <algorithm>

#include "csrc/cuda/negatives/step.h"
#include "csrc/simt/registry.h"

namespace {

using namespace ssc;
using namespace ssc::cuda;

template <class T>
using AccumulatorType = typename AccumulatorOf<T>::Type;

// The launchers' first parameters, in this order. labels: written by label_rows.
#define SSC_NEGATIVES_PARAMETERS                                                               \
  const T *input, const T *weight, const T *bias, const AccumulatorType<T>*target_logit,       \
      const int64_t *hits, const bool *counted, const int64_t *ids, const float *log_count,    \
      int64_t batch, int64_t dim, int64_t classes, int64_t samples, int64_t hits_per_row,      \
      double inv_temperature, double softcap, bool remove_hits, bool sigmoid, int64_t *labels, \
      int major, bool tf32, int multiprocessors, int64_t chunk_rows, void *workspace

template <class T>
NegativesProblem<T> problem_of(SSC_NEGATIVES_PARAMETERS) {
  using A = AccumulatorType<T>;
  static_cast<void>(counted);
  static_cast<void>(major);
  static_cast<void>(tf32);
  static_cast<void>(multiprocessors);
  static_cast<void>(chunk_rows);
  static_cast<void>(workspace);
  const LossProblem<T> problem = {
      input,      weight,  dim,       dim,         bias,
      labels,     ids,     log_count, nullptr,     batch,
      dim,        classes, samples,   kRowIgnored, static_cast<A>(inv_temperature),
      remove_hits};
  return {problem, target_logit, hits, hits_per_row, static_cast<A>(softcap), sigmoid};
}

#define SSC_NEGATIVES                                                                           \
  problem_of<T>(input, weight, bias, target_logit, hits, counted, ids, log_count, batch, dim,   \
                classes, samples, hits_per_row, inv_temperature, softcap, remove_hits, sigmoid, \
                labels, major, tf32, multiprocessors, chunk_rows, workspace)

// results: [2][batch]: loss, peak. chunk_rows < 0: what the layout says.
template <class T>
cudaError_t rows(SSC_NEGATIVES_PARAMETERS, AccumulatorType<T>* results, cudaStream_t stream) {
  NegativeRowsLayout layout = negative_rows_layout<T>(batch, samples, multiprocessors);
  if (chunk_rows > 0) layout.chunk_rows = std::min(layout.chunk_rows, chunk_rows);
  const cudaError_t error = label_rows(counted, batch, labels, stream);
  if (error != cudaSuccess) return error;
  return negative_rows(SSC_NEGATIVES, {results, nullptr, results + batch}, layout, workspace,
                       matmul_path<T>(major, tf32), stream);
}

template <class T>
cudaError_t grads(SSC_NEGATIVES_PARAMETERS, const AccumulatorType<T>* row_scale,
                  const int64_t* sorted, const int64_t* order, T* grad_input, T* grad_weight,
                  T* grad_bias, int64_t* grad_classes, cudaStream_t stream) {
  WorkspaceLayout layout =
      workspace_layout<T>(batch, dim, samples, multiprocessors, negative_row_bytes<T>(samples));
  if (chunk_rows > 0) layout.chunk_rows = std::min(layout.chunk_rows, chunk_rows);
  const cudaError_t error = label_rows(counted, batch, labels, stream);
  if (error != cudaSuccess) return error;
  const LossGradients<T> gradients = {row_scale, grad_input,  dim, sorted,    order,       samples,
                                      true,      grad_weight, dim, grad_bias, grad_classes};
  return negative_grads(SSC_NEGATIVES, gradients, layout, workspace, matmul_path<T>(major, tf32),
                        stream);
}

// Writes the bytes and chunk_rows of both layouts.
template <class T>
cudaError_t layouts(int64_t batch, int64_t dim, int64_t samples, int multiprocessors,
                    int64_t* out) {
  const NegativeRowsLayout r = negative_rows_layout<T>(batch, samples, multiprocessors);
  const WorkspaceLayout g =
      workspace_layout<T>(batch, dim, samples, multiprocessors, negative_row_bytes<T>(samples));
  out[0] = r.bytes;
  out[1] = r.chunk_rows;
  out[2] = g.bytes;
  out[3] = g.chunk_rows;
  return cudaSuccess;
}

}  // namespace

#define SSC_BIND(name, T)                              \
  SSC_SIMT_LAUNCHER("negative_rows_" name, rows<T>);   \
  SSC_SIMT_LAUNCHER("negative_grads_" name, grads<T>); \
  SSC_SIMT_LAUNCHER("negative_layouts_" name, layouts<T>)
SSC_BIND("float32", float);
SSC_BIND("float64", double);
SSC_BIND("bfloat16", __nv_bfloat16);
SSC_BIND("float16", __half);
