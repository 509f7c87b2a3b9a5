// The targets' share of losses that are composed in Python: their products with the rows of H, and,
// once the derivatives of the loss by these are known, their share of the gradients.
#pragma once

#include <cstdint>

#include "csrc/cpu/base/dtype.h"
#include "csrc/cpu/base/isa.h"
#include "csrc/cpu/base/parallel.h"
#include "csrc/cpu/base/workspace.h"

namespace ssc {

struct TargetProblem {
  MatrixView input;       // [batch, dim]
  MatrixView weight;      // [classes, dim]
  const int64_t* target;  // [batch][targets] classes; -1: none
  int64_t batch, targets, dim, classes;
};

// out[batch][targets] = h_i · W_t; 0 where there is no target. What is infinite becomes NaN: it is no
// logit, and neither a cap nor a sigmoid may make one of it.
template <class T>
void target_products(const TargetProblem& problem, T* out, Isa isa,
                     const ParallelFor& parallel_for);

template <class T>
struct TargetGradients {
  const T* coefficient;       // [batch][targets]: the derivatives of the loss by the products
  const T* bias_coefficient;  // the same by b_t; null: no bias
  const int64_t* classes;     // [rows] rising: whose gradients the rows are; all targets are there
  int64_t rows;
  T* input;   // [batch][dim]
  T* weight;  // [rows][dim]
  T* bias;    // [rows]
};

// Adds dH_i += c_it W_t, dW_t += c_it h_i, db_t += the bias's coefficient. False, with nothing
// added, if a target is not among the classes.
template <class T>
bool add_target_grads(const TargetProblem& problem, const TargetGradients<T>& gradients,
                      Workspace& workspace, Isa isa, const ParallelFor& parallel_for);

}  // namespace ssc
