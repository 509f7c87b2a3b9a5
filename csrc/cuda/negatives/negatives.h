// The negatives' share of the general losses on the GPU, against target logits r that are given:
//
//   z_is = cap((h_i · W_s + b_s) / τ) − log n_s        cap(x) = c tanh(x / c), c the softcap
//   softmax   loss_i = log(1 + Σ_s exp(z_is − r_i))    sigmoid   loss_i = Σ_s softplus(z_is)
//
// by the stages of loss.h, of which only those differ that are here:
//
//   label_rows              which rows count, as targets for the stages of csrc/cuda/loss
//   find_hits               which samples are among the classes that a row leaves out, a bit each
//   score_negatives         z, in place of `score`
//   finish_negatives        losses and peaks from the merged parts
//   negative_probabilities  P_is = (k_i / κ) d loss_i / d z_is cap' / τ, in place of
//                           `probabilities`
//
// A row that does not count gives 0 and no gradient, whatever it holds.
#pragma once

#include "csrc/core/host_device.h"
#include "csrc/cuda/loss/gradients.h"

namespace ssc::cuda {

// Labels of rows, in LossProblem::target: no class, so nothing is read of W for them.
constexpr int64_t kRowCounts = -2, kRowIgnored = -1;

template <class T>
struct NegativesProblem {
  using A = typename AccumulatorOf<T>::Type;

  // target: of label_rows; ignore_index: kRowIgnored; no target counts; remove_accidental_hits: out
  // of the sums too.
  LossProblem<T> problem;
  const A* target_logit;  // [B], not looked at for sigmoid
  const int64_t* hits;    // [B][hits_per_row] classes left out of the peak; negative: none
  int64_t hits_per_row;
  A softcap;  // 0: none
  bool sigmoid;
};

// Bits of pairs of rows and samples, [S / 128][B][4] words, so that a tile's are together: how many
// words there are for a row, and where that of sample s is.
SSC_HD constexpr int64_t bit_words(int64_t samples) { return (samples + 127) / 128 * 4; }
SSC_HD int64_t bit_word(int64_t row, int64_t batch, int64_t s) {
  return (s / 128 * batch + row) * 4 + s / 32 % 4;
}

// As RowParts. For sigmoid the sum of (max, sum) is that of softplus(z), and max means nothing.
template <class A>
struct NegativeParts {
  OnlineLse<A>* lse;  // [splits][B]
  A* peak;            // [splits][B]: the largest z that is no hit
  int splits;
};

// All [B]; rows that do not count are set to 0.
template <class A>
struct NegativeResults {
  A* loss;
  A* lse;  // log(exp r + Σ exp z); null if not wanted
  A* peak;
};

// labels[i] = kRowCounts, or kRowIgnored where `counted` says so; null: all count.
cudaError_t label_rows(const bool* counted, int64_t batch, int64_t* labels, cudaStream_t stream);

// bits: of all pairs, 0 past the last sample.
template <class T>
cudaError_t find_hits(const NegativesProblem<T>& problem, uint32_t* bits, cudaStream_t stream);

// logits: [B][logits_stride], −inf where a hit is removed; null if not wanted.
template <class T>
cudaError_t score_negatives(const NegativesProblem<T>& problem, const uint32_t* bits,
                            const NegativeParts<typename AccumulatorOf<T>::Type>& parts,
                            typename AccumulatorOf<T>::Type* logits, int64_t logits_stride,
                            MatmulPath path, cudaStream_t stream);

template <class T>
cudaError_t finish_negatives(const NegativesProblem<T>& problem,
                             const NegativeParts<typename AccumulatorOf<T>::Type>& parts,
                             const NegativeResults<typename AccumulatorOf<T>::Type>& results,
                             cudaStream_t stream);

// Those of the chunk's rows; its target_coefficient is not written.
template <class T>
cudaError_t negative_probabilities(const NegativesProblem<T>& problem, const GradChunk<T>& chunk,
                                   cudaStream_t stream);

}  // namespace ssc::cuda
