// The whole step after the draw: losses and gradients of chunks of rows, from one workspace.
#pragma once

#include "csrc/cuda/loss/gradients.h"

namespace ssc::cuda {

// How the workspace is cut, fixed by the shape alone: offsets in bytes, multiples of 256.
struct WorkspaceLayout {
  int64_t chunk_rows;                // rows that are in work at a time
  int64_t logits_stride;             // elements
  int score_splits, input_splits;    // of the samples, to fill the GPU
  int64_t logits, probabilities;     // [chunk_rows][logits_stride]
  int64_t parts, flags, kappa;       // of `score`, a number's room for each flag; [1]
  int64_t beside;                    // [chunk_rows][row_bytes_beside]
  int64_t target_coefficient;        // [B]
  int64_t input_partial;             // [input_splits][chunk_rows][D], if these are more than one
  int64_t sample_rows, sample_sums;  // [S][D], [S]
  int64_t bytes;                     // in all
};

// row_bytes_beside: the bytes that a row in work needs beyond the stages of gradients.h. At most
// 64 MiB, whatever B and S are, unless a single row takes more; and S (D + 1) + B numbers of 4
// bytes (8 in float64) for the sampled rows' gradients and the targets' coefficients.
template <class T>
WorkspaceLayout workspace_layout(int64_t batch, int64_t dim, int64_t samples, int multiprocessors,
                                 int64_t row_bytes_beside = 0);

template <class T>
struct LossGradients {
  const typename AccumulatorOf<T>::Type* row_scale;  // [B]: d total / d loss_i
  T* input;                                          // [B][input_stride]
  int64_t input_stride;
  // As in ClassGrads.
  const int64_t* classes;
  const int64_t* order;
  int64_t entries;
  bool sparse;
  T* weight;
  int64_t weight_stride;
  T* bias;
  int64_t* grad_classes;
};

template <class T>
cudaError_t loss_and_grads(const LossProblem<T>& problem,
                           const RowResults<typename LossProblem<T>::Accumulator>& results,
                           const LossGradients<T>& gradients, const WorkspaceLayout& layout,
                           void* workspace, MatmulPath path, cudaStream_t stream);

}  // namespace ssc::cuda
