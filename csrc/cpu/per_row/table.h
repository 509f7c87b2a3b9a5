// The innermost loops over one row's own negatives, one table of functions per (instruction set,
// arithmetic type). They gather kLanes rows of W at a time, as many as a vector has lanes: the
// logits of these come out as one vector, and what is made of them goes back to the same rows of W
// while these are in L1. So a row of W is read from memory once.
//
// The samples of a row are n ids; `ahead` more ids follow in the same array, those of the row that
// comes next, so that the stream of prefetches does not stop between rows.
#pragma once

#include <cstdint>

#include "csrc/cpu/base/dtype.h"
#include "csrc/cpu/base/isa.h"

namespace ssc {

// The parameters that all rows share: z = cap((h · W_s + b_s) / τ) − log n_s, cap(x) = softcap ·
// tanh(x / softcap), or x where softcap is 0.
template <class T>
struct RowScore {
  MatrixView weight;  // [C, D]
  int64_t dim;
  T inv_temperature, softcap;
};

// One row and its samples.
template <class T>
struct RowSamples {
  const T* h;          // [D]
  const int64_t* ids;  // [count + ahead]
  int64_t count, ahead;
  const T* bias;       // [count], or null
  const T* log_count;  // [count], or null
};

// An entry of the weight gradient: coefficient · h_row belongs to class id. `row` counts from the
// first of a chunk.
template <class T>
struct GradEntry {
  int64_t id;
  int32_t row;
  T coefficient;
};

// Entries [begin, end) of one class; its gradient row is at `slot`.
struct GradRun {
  int64_t slot;
  int64_t begin, end;
};

template <class T>
struct RowSum {
  T sum;   // Σ_s E_s, or of softplus or nothing, as the function says
  T peak;  // max_s (z_s − reference)
};

template <class T>
struct PerRowKernels {
  // Row `row` of H, as T.
  void (*load_row)(MatrixView input, int64_t row, int64_t dim, T* h);

  // z [count].
  void (*score)(const RowScore<T>& score, const RowSamples<T>& samples, T* z);

  // The maximum of z [count]; −inf for none.
  T (*maximum)(const T* z, int64_t count);
  // Σ exp(z − reference), reference no less than their maximum.
  T (*exp_sum)(const T* z, int64_t count, T reference);
  // Σ log(1 + exp z).
  T (*softplus_sum)(const T* z, int64_t count);

  // In one sweep over the rows of W: coefficient [count] = E_s dz_s/dx_s, E = exp(z − reference)
  // (sigmoid: 1 / (1 + exp −z)), and grad [max(D, lanes)] = Σ_s coefficient_s W_s. Returns Σ E_s
  // and the maximum of z − reference; where that is above kExpCeiling, nothing else is valid.
  RowSum<T> (*grads)(const RowScore<T>& score, const RowSamples<T>& samples, T reference,
                     bool sigmoid, T* coefficient, T* grad);

  // out[row] = factor · grad.
  void (*write_row)(MatrixView out, int64_t row, int64_t dim, T factor, const T* grad);

  // For each run: out + slot · stride += Σ coefficient · rows[row], rows [·][dim]. bias: [slots] +=
  // Σ coefficient, or null.
  void (*add_runs)(const GradRun* runs, int64_t count, const GradEntry<T>* entries, const T* rows,
                   int64_t dim, T* out, int64_t stride, T* bias);

  // Writes dim elements as `dtype`.
  void (*convert)(const T* from, void* to, DType dtype, int64_t count);

  int lanes;
  T exp_ceiling;
};

template <class T>
const PerRowKernels<T>& per_row_kernels(Isa isa);

// Ids beyond the row's own that are worth knowing.
constexpr int64_t kRowsAhead = 32;

}  // namespace ssc
