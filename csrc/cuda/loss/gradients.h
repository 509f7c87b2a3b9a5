// Gradients of Σ_i k_i loss_i, with k_i = row_scale_i, from the logits that `score` left behind:
//
//   scale_of_rows   κ, the power of two below max |k_i / τ|: products are taken of k_i / τ / κ, so
//                   that neither bfloat16 nor float16 loses small ones or overflows, and κ comes
//                   back at the end, exactly
//   probabilities   P_is = (k_i / τ / κ) exp(z_is − lse_i) and c_i = (k_i / τ / κ) (p_it − 1)
//   input_products  dH_i = κ (P Ws + c_i W_t); or, where the samples are split to fill the GPU,
//   input_grad      after the splits' P Ws, their sums: dH_i = κ (Σ splits + c_i W_t)
//   weight_products (+)= P^T H      bias_products (+)= P^T 1
//   class_grads     per class, in the order of a sorted list: dW_c = κ (Σ samples + Σ c_i h_i)
//                   and db_c
//
// Three matmuls in all, since a scalar upstream gradient scales the result afterwards. Chunks of
// rows bound the workspace: logits and P are [rows of a chunk][S]. Rows to be ignored are left out
// of every sum, whatever their h, k or W_t hold.
#pragma once

#include "csrc/cuda/loss/loss.h"

namespace ssc::cuda {

// A chunk of rows on its way, and its workspace. Strides are multiples of 16 bytes.
template <class T>
struct GradChunk {
  using A = typename AccumulatorOf<T>::Type;

  LossProblem<T> problem;  // of the chunk's rows
  const A* loss;           // [rows]
  const A* lse;            // [rows]
  const A* row_scale;      // [rows]
  const A* kappa;          // [1]
  const A* logits;         // [rows][stride]
  T* probabilities;        // [rows][stride], zeros after S; may be `logits` where the types agree
  A* target_coefficient;   // [rows]: c_i
  int64_t stride;
  MatmulPath path;  // of the products; floats of P are rounded to tf32 where tensor cores take them
};

// row_scale: [rows].
template <class T>
cudaError_t scale_of_rows(const LossProblem<T>& problem,
                          const typename LossProblem<T>::Accumulator* row_scale,
                          typename LossProblem<T>::Accumulator* kappa, cudaStream_t stream);

template <class T>
cudaError_t probabilities(const GradChunk<T>& chunk, cudaStream_t stream);

// Where a chunk's rows of dH go.
template <class T>
struct InputGrad {
  typename AccumulatorOf<T>::Type* partial;  // [splits][rows][D]; not used where there is one split
  int splits;                                // of the samples
  T* grad;                                   // [rows][grad_stride]
  int64_t grad_stride;
};

template <class T>
cudaError_t input_products(const GradChunk<T>& chunk, const InputGrad<T>& out, cudaStream_t stream);

// The rest of dH: nothing where there is one split.
template <class T>
cudaError_t input_grad(const GradChunk<T>& chunk, const InputGrad<T>& out, cudaStream_t stream);

// rows: [S][D], stored or, if `accumulate`, added to.
template <class T>
cudaError_t weight_products(const GradChunk<T>& chunk, typename GradChunk<T>::A* rows,
                            bool accumulate, cudaStream_t stream);

// sums: [S].
template <class T>
cudaError_t bias_products(const GradChunk<T>& chunk, typename GradChunk<T>::A* sums,
                          bool accumulate, cudaStream_t stream);

// Samples and targets together, sorted by class: entry j is sample order[j] if that is below S,
// else the target of row order[j] − S. Equal classes are neighbours, in a fixed order, in which the
// first one's thread block adds them up: no atomics, the same bits every time.
template <class T>
struct ClassGrads {
  using A = typename AccumulatorOf<T>::Type;

  const int64_t* classes;       // [entries], sorted; targets that are ignore_index add nothing
  const int64_t* order;         // [entries]
  int64_t entries;              // S + B; S where no target is a class
  const A* sample_rows;         // [S][D] of weight_products
  const A* sample_sums;         // [S] of bias_products; null without bias
  const A* target_coefficient;  // [B]
  const A* kappa;               // [1]
  // Dense: row `class` of grad_weight, others untouched. Sparse: row j for entry j, zeros where j
  // is not the first of its class, and grad_classes[j] its class (0 where that is outside).
  bool sparse;
  T* grad_weight;
  int64_t grad_stride;
  T* grad_bias;           // null without bias
  int64_t* grad_classes;  // [entries], sparse only
};

template <class T>
cudaError_t class_grads(const LossProblem<T>& problem, const ClassGrads<T>& grads,
                        cudaStream_t stream);

}  // namespace ssc::cuda
