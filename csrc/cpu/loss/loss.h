// Sampled softmax loss and its gradients on the CPU.
//
//   z_is = (h_i · W_s + b_s) / τ − log n_s,  z_it likewise for the target
//   loss_i = log(exp z_it + Σ_s exp z_is) − z_it
//
// Arithmetic is in T: float, or double where the matrices are f64. Everything is valid by the time
// it gets here, except class ids, which plan_samples checks.
#pragma once

#include <cstdint>

#include "csrc/cpu/base/dtype.h"
#include "csrc/cpu/base/isa.h"
#include "csrc/cpu/base/parallel.h"
#include "csrc/cpu/loss/plan.h"
#include "csrc/cpu/loss/table.h"

namespace ssc {

struct LossProblem {
  MatrixView input;                  // [batch, dim]
  MatrixView weight;                 // [classes, dim]
  Vector bias;                       // [classes]
  const int64_t* target;             // [batch]
  Vector target_log_expected_count;  // [batch]
  int64_t batch, dim, classes;
  double inv_temperature;
  Products products;  // of float32 numbers in the matmuls; the targets' own stay float32
  // Not null: the loss of the negatives alone, softmax's log(1 + Σ_s exp(z_is − r_i)) against
  // logits r that are given, or Σ_s softplus(z_is). target and its counts are not looked at.
  const NegativesForm* negatives;
  Vector target_logit;  // [batch], of the dtype of the results
};

// All [batch]; rows that do not count are set to 0.
template <class T>
struct RowResults {
  T* loss;
  T* lse;             // log(exp z_t + Σ exp z_s)
  T* target_logit;    // z_t
  T* error;           // 1 where some z_s > z_t
  T* peak = nullptr;  // of negatives, beside the loss alone: max_s z_s without the hits
};

template <class T>
struct Gradients {
  const T* row_scale;  // [batch]: d total / d loss_i
  MatrixView input;    // [batch, dim], written
  // Rows of W's gradient: for class plan.touched[n] at row n (sparse) or at its own id (dense, the
  // others being zero already).
  MatrixView weight;
  Vector bias;  // data null: no bias
  bool sparse;
};

// Losses of the sampled softmax, streamed over blocks of samples.
template <class T>
void loss_rows(const LossProblem& problem, const SamplePlan& plan, const RowResults<T>& results,
               Workspace& workspace, Isa isa, const ParallelFor& parallel_for);

// The same and the gradients of Σ_i row_scale_i · loss_i, in one sweep over E = exp(z − z_t).
template <class T>
void loss_and_grads(const LossProblem& problem, const SamplePlan& plan,
                    const RowResults<T>& results, const Gradients<T>& gradients,
                    Workspace& workspace, Isa isa, const ParallelFor& parallel_for);

// Exact cross entropy: every class is a sample, in order, and n = 1.
template <class T>
void exact_loss_rows(const LossProblem& problem, const SamplePlan& rows,
                     const RowResults<T>& results, Workspace& workspace, Isa isa,
                     const ParallelFor& parallel_for);

// (h_i · W_c + b_c) / τ for classes [begin, begin + count) to out [batch, count].
template <class T>
void logits(const LossProblem& problem, int64_t begin, int64_t count, MatrixView out,
            Workspace& workspace, Isa isa, const ParallelFor& parallel_for);

}  // namespace ssc
