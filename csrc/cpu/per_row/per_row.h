// Losses against negatives of which every row has its own, and their gradients on the CPU.
//
//   z_is = cap((h_i · W_s + b_s) / τ) − log n_is,  cap(x) = c tanh(x / c) with a softcap c, else x
//   softmax: loss_i = log(1 + Σ_s exp(z_is − r_i)),  r_i the target's logit
//   sigmoid: loss_i = Σ_s log(1 + exp z_is)
//
// Bound by memory: the forward and the backward pass read B·S rows of W each, once, and the weight
// gradient adds to the distinct ones among them. Ids may be drawn anew in every pass instead of
// being stored. Nothing of size B·S is ever allocated, but for what the result of a sparse gradient
// takes.
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/cpu/base/dtype.h"
#include "csrc/cpu/base/parallel.h"
#include "csrc/cpu/sample/rows.h"

namespace ssc {

// Where the samples of each row come from.
struct RowIds {
  const int64_t* ids;     // [batch, num_samples], if they are given
  Vector log_count;       // [batch, num_samples] log n, +inf masks a sample; data null: 0
  const RowDraws* draws;  // else; null: given
  bool corrected;         // with draws: whether log n is subtracted
  int64_t num_samples;
};

// T is the type of the arithmetic, float or double.
template <class T>
struct PerRowProblem {
  MatrixView input;       // [batch, dim]
  MatrixView weight;      // [classes, dim]
  Vector bias;            // [classes]
  const T* target_logit;  // [batch]: r
  const int64_t* hits;    // [batch, num_hits] classes that do not count for the peak; −1: none
  int64_t num_hits;
  bool remove_hits;     // nor for the loss
  const bool* counted;  // [batch], null: all. Others have loss 0 and no gradient.
  RowIds samples;
  int64_t batch, dim, classes;
  double inv_temperature, softcap;  // softcap 0: none
  bool sigmoid;
};

// loss, peak [batch]: peak is the largest z_is of a sample that is no hit, −inf if there is none.
// Throws std::runtime_error for an id outside [0, classes).
template <class T>
void per_row_loss(const PerRowProblem<T>& problem, T* loss, T* peak,
                  const ParallelFor& parallel_for);

template <class T>
struct PerRowGradients {
  const T* row_scale;  // [batch]: what each row's loss is multiplied with
  MatrixView input;    // [batch, dim], zero
  MatrixView weight;   // [slots, dim], zero
  Vector bias;         // [slots], zero; data null: no bias
  // The class of each slot, in rising order; null: every class has its own.
  const int64_t* touched;
  int64_t slots;
  bool sparse;  // slot n of weight and bias is row n; else row touched[n]
};

// The distinct classes of all samples that count, in rising order. O(N) memory for N of them.
template <class T>
std::vector<int64_t> touched_classes(const PerRowProblem<T>& problem,
                                     const ParallelFor& parallel_for);

// Gradients of Σ_i row_scale_i · loss_i, r being constant.
template <class T>
void per_row_grads(const PerRowProblem<T>& problem, const PerRowGradients<T>& gradients,
                   const ParallelFor& parallel_for);

}  // namespace ssc
