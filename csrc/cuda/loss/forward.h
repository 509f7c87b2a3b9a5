// Forward only, for evaluation and for losses per row: nothing is kept per pair of row and sample.
#pragma once

#include "csrc/cuda/loss/loss.h"

namespace ssc::cuda {

// Bytes of workspace for the losses of `batch` rows with the samples, or all classes, in `splits`
// parts: score_splits(batch, samples, multiprocessors) is a good number of them. A multiple of 256.
template <class T>
int64_t loss_rows_bytes(int64_t batch, int splits);

// The sampled loss of each row.
template <class T>
cudaError_t loss_rows(const LossProblem<T>& problem,
                      const RowResults<typename LossProblem<T>::Accumulator>& results, int splits,
                      void* workspace, MatmulPath path, cudaStream_t stream);

// The exact cross entropy of each row, the sampled loss with every class once, n = 1 and hits
// removed: the target's own logit is computed apart, so that a small loss is no difference of large
// numbers. lse is over all classes; error is 1 where the target is not the largest logit. The
// problem's ids, samples, log counts and remove_accidental_hits are not looked at.
template <class T>
cudaError_t exact_loss_rows(const LossProblem<T>& problem,
                            const RowResults<typename LossProblem<T>::Accumulator>& results,
                            int splits, void* workspace, MatmulPath path, cudaStream_t stream);

// out[i][c − begin] = (h_i · W_c + b_c) / τ for the classes c in [begin, end), the rows of `out`
// being out_stride apart. The blocks are as many as `splits` makes them; no bit depends on it. Of
// the problem, only input, weight, bias, their sizes and the temperature are looked at.
template <class T>
cudaError_t logits(const LossProblem<T>& problem, int64_t begin, int64_t end,
                   typename LossProblem<T>::Accumulator* out, int64_t out_stride, int splits,
                   MatmulPath path, cudaStream_t stream);

}  // namespace ssc::cuda
