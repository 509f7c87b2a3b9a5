// Losses against negatives of which every row has its own, and their gradients on the GPU: the
// stages of csrc/cpu/per_row/per_row.h.
//
//   draw_rows         ids and log n of a chunk of rows, where a key stands for them (sample.h)
//   score_rows        z_is = cap((h_i · W_s + b_s) / τ) − log n_is; per row (max, Σ exp), or
//                     Σ softplus
//   finish_rows       loss_i = log(1 + Σ_s exp(z_is − r_i)), or Σ_s log(1 + exp z_is); the peak
//   row_coefficients  c_is = k_i p_is dz/dx, in the place of z_is; and the list of their classes
//   row_input_grad    dH_i = Σ_s c_is W_s
//   row_class_grads   dW_c += Σ c_is h_i over a class's entries in the sorted list,
//                     db_c += Σ c_is
//
// Bound by memory: B·S·D elements of W are read forward and twice that backward (z again, then dH),
// each row whole, 16 bytes a lane. Ids that come from a key are drawn anew in both passes, a chunk
// of rows at a time, into a workspace whose size does not depend on B: 12 bytes for a sample whose
// row of W has hundreds. Nothing waits or allocates. An id outside [0, C) is never followed: it
// makes its row's loss NaN. All sums are in a fixed order.
#pragma once

#include <cstdint>

#include "csrc/cuda/device/accumulator.h"
#include "csrc/cuda/device/device.h"

namespace ssc::cuda {

// The problem of a chunk of `batch` rows.
template <class T>
struct PerRowProblem {
  using Accumulator = typename AccumulatorOf<T>::Type;

  const T* input;   // [B, D]
  const T* weight;  // [C, D]
  int64_t input_stride, weight_stride;
  const T* bias;                    // [C] or null
  const Accumulator* target_logit;  // [B]: r
  const int64_t* hits;              // [B][num_hits]
  int64_t num_hits;
  bool remove_hits;
  const bool* counted;     // [B] or null: all
  const int64_t* ids;      // [B][S]
  const float* log_count;  // [B][S] or null: 0; +inf masks a sample
  int64_t batch, dim, classes, samples;
  Accumulator inv_temperature, softcap;  // softcap 0: none
  bool sigmoid;
};

// The samples of a row are split between blocks; each of the parts leaves this.
template <class A>
struct RowPart {
  A max, sum;  // Σ exp(z) = exp(max) · sum; with sigmoid `sum` is Σ softplus(z)
  A peak;
};

// A number of splits that fills a GPU of `multiprocessors`.
int row_splits(int64_t batch, int64_t samples, int multiprocessors);

// parts: [splits][B]. logits: [B][S], −inf for what does not count; null if not wanted.
template <class T>
cudaError_t score_rows(const PerRowProblem<T>& problem,
                       RowPart<typename PerRowProblem<T>::Accumulator>* parts, int splits,
                       typename PerRowProblem<T>::Accumulator* logits, cudaStream_t stream);

// loss, peak, lse: [B]; 0 for rows that don't count. lse = log(exp r + Σ_s exp z_s), or 0 with
// sigmoid; null if not wanted.
template <class T>
cudaError_t finish_rows(const PerRowProblem<T>& problem,
                        const RowPart<typename PerRowProblem<T>::Accumulator>* parts, int splits,
                        typename PerRowProblem<T>::Accumulator* loss,
                        typename PerRowProblem<T>::Accumulator* peak,
                        typename PerRowProblem<T>::Accumulator* lse, cudaStream_t stream);

// logits [B][S] in, coefficients out. classes, entries [B][S]: each one's class, C for those that
// add nothing, and its number.
template <class T>
cudaError_t row_coefficients(const PerRowProblem<T>& problem,
                             const typename PerRowProblem<T>::Accumulator* lse,
                             const typename PerRowProblem<T>::Accumulator* row_scale,
                             typename PerRowProblem<T>::Accumulator* logits, int64_t* classes,
                             int64_t* entries, cudaStream_t stream);

template <class T>
cudaError_t row_input_grad(const PerRowProblem<T>& problem,
                           const typename PerRowProblem<T>::Accumulator* coefficients, T* grad,
                           int64_t grad_stride, cudaStream_t stream);

// Entries sorted by class, and where their sums go.
template <class A>
struct RowClassGrads {
  const int64_t* classes;  // [entries], sorted
  const int64_t* order;    // [entries]
  int64_t entries;
  const A* coefficients;  // [entries] by number
  A* grad_weight;         // [·][D]
  A* grad_bias;           // [·] or null
  // Row j for the first entry j of each class, or, null, row `class`, to which it is added.
  int64_t* grad_classes;  // [entries], zero
};

template <class T>
cudaError_t row_class_grads(const PerRowProblem<T>& problem,
                            const RowClassGrads<typename PerRowProblem<T>::Accumulator>& grads,
                            cudaStream_t stream);

}  // namespace ssc::cuda
