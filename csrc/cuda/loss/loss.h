// Sampled softmax loss on the GPU, the stages of csrc/cpu/loss/loss.h:
//
//   target_logits   z_it = (h_i · W_t + b_t) / τ − log n_t
//   score           z_is = (h_i · W_s + b_s) / τ − log n_s and, per row, (max, Σ exp) over the
//                   samples
//   finish_rows     loss_i = log(exp z_it + Σ_s exp z_is) − z_it
//
// Symbols: B rows, D width, S samples, C classes. Everything is in device memory; nothing
// allocates, waits or reads back, so the whole can be captured in a CUDA graph. A class id outside
// [0, C) is never followed: as a sample it makes the losses NaN, as a target (other than
// ignore_index) its own row's.
#pragma once

#include <cstdint>

#include "csrc/core/online_lse.h"
#include "csrc/cuda/device/accumulator.h"
#include "csrc/cuda/device/device.h"
#include "csrc/cuda/tile/path.h"

namespace ssc::cuda {

template <class T>
struct LossProblem {
  using Accumulator = typename AccumulatorOf<T>::Type;

  const T* input;   // [B, D]
  const T* weight;  // [C, D]
  int64_t input_stride, weight_stride;
  const T* bias;                           // [C] or null
  const int64_t* target;                   // [B]
  const int64_t* ids;                      // [S]; null: 0 .. S − 1, with S = C all classes
  const float* log_expected_count;         // [S] or null: 0
  const float* target_log_expected_count;  // [B] or null: 0
  int64_t batch, dim, classes, samples, ignore_index;
  Accumulator inv_temperature;
  bool remove_accidental_hits;
};

// All [B]; rows to be ignored are set to 0.
template <class A>
struct RowResults {
  A* loss;
  A* lse;
  A* target_logit;
  A* error;  // 1 where some z_s > z_t
};

// The samples are split between blocks where there are too few tiles of rows to fill a GPU: each of
// `splits` parts leaves its own (max, sum) of a row, which finish_rows merges in order, so results
// depend on the number of splits but not on the schedule.
template <class A>
struct RowParts {
  OnlineLse<A>* lse;  // [splits][B]
  uint8_t* beaten;    // [splits][B]: whether a z_s of the part was above z_t
  int splits;
};

// A number of splits that fills a GPU of `multiprocessors`, and what splits · batch is at most.
int score_splits(int64_t batch, int64_t samples, int multiprocessors);
int64_t most_score_parts(int64_t batch, int multiprocessors);

template <class T>
cudaError_t target_logits(const LossProblem<T>& problem,
                          const RowResults<typename LossProblem<T>::Accumulator>& results,
                          cudaStream_t stream);

// logits: [B][logits_stride], S of them corrected logits, −inf where a hit is removed; null if not
// wanted. Without results.target_logit no row has a target, and without parts.lse there are logits
// only: together, plain logits.
template <class T>
cudaError_t score(const LossProblem<T>& problem,
                  const RowResults<typename LossProblem<T>::Accumulator>& results,
                  const RowParts<typename LossProblem<T>::Accumulator>& parts,
                  typename LossProblem<T>::Accumulator* logits, int64_t logits_stride,
                  MatmulPath path, cudaStream_t stream);

template <class T>
cudaError_t finish_rows(const LossProblem<T>& problem,
                        const RowResults<typename LossProblem<T>::Accumulator>& results,
                        const RowParts<typename LossProblem<T>::Accumulator>& parts,
                        cudaStream_t stream);

}  // namespace ssc::cuda
