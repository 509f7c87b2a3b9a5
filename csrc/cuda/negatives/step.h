// The whole of the negatives' loss, and of its gradients: chunks of rows, from one workspace.
#pragma once

#include "csrc/cuda/loss/step.h"
#include "csrc/cuda/negatives/negatives.h"

namespace ssc::cuda {

// How the workspace of negative_rows is cut, fixed by the shape alone; at most 64 MiB, unless a
// single row takes more.
struct NegativeRowsLayout {
  int64_t chunk_rows;       // rows that are in work at a time
  int splits;               // of the samples, to fill the GPU
  int64_t bits, lse, peak;  // of find_hits and score_negatives
  int64_t bytes;            // in all
};

template <class T>
NegativeRowsLayout negative_rows_layout(int64_t batch, int64_t samples, int multiprocessors);

// results.lse: null.
template <class T>
cudaError_t negative_rows(const NegativesProblem<T>& problem,
                          const NegativeResults<typename AccumulatorOf<T>::Type>& results,
                          const NegativeRowsLayout& layout, void* workspace, MatmulPath path,
                          cudaStream_t stream);

// Bytes that negative_grads needs for a row in work beside the stages of csrc/cuda/loss.
template <class T>
int64_t negative_row_bytes(int64_t samples);

// The gradients of Σ_i row_scale_i loss_i, target_logit being constant; gradients.entries = S. The
// layout is workspace_layout's, with negative_row_bytes.
template <class T>
cudaError_t negative_grads(const NegativesProblem<T>& problem, const LossGradients<T>& gradients,
                           const WorkspaceLayout& layout, void* workspace, MatmulPath path,
                           cudaStream_t stream);

}  // namespace ssc::cuda
