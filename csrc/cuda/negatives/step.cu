#include "csrc/cuda/device/grid.h"
#include "csrc/cuda/loss/chunks.h"
#include "csrc/cuda/negatives/step.h"

namespace ssc::cuda {
namespace {

int64_t bit_bytes(int64_t samples) {
  return bit_words(samples) * static_cast<int64_t>(sizeof(uint32_t));
}

// The problem of `rows`, which are a part of its rows from `first` on.
template <class T>
NegativesProblem<T> part_of(NegativesProblem<T> problem, const LossProblem<T>& rows,
                            int64_t first) {
  problem.problem = rows;
  problem.target_logit += first;
  problem.hits += first * problem.hits_per_row;
  return problem;
}

}  // namespace

template <class T>
NegativeRowsLayout negative_rows_layout(int64_t batch, int64_t samples, int multiprocessors) {
  using A = typename AccumulatorOf<T>::Type;
  constexpr int64_t kLse = sizeof(OnlineLse<A>), kPeak = sizeof(A);
  Buffers buffers;
  const int64_t room = kChunkBudget - 3 * Buffers::kAlignment -
                       most_score_parts(0, multiprocessors) * (kLse + kPeak);
  NegativeRowsLayout layout{};
  layout.chunk_rows = rows_of_chunk(room, bit_bytes(samples) + kLse + kPeak, batch);
  layout.splits = score_splits(layout.chunk_rows, samples, multiprocessors);
  const int64_t parts = layout.splits * layout.chunk_rows;
  layout.bits = buffers.take(layout.chunk_rows * bit_bytes(samples));
  layout.lse = buffers.take(parts * kLse);
  layout.peak = buffers.take(parts * kPeak);
  layout.bytes = buffers.bytes();
  return layout;
}

template <class T>
cudaError_t negative_rows(const NegativesProblem<T>& problem,
                          const NegativeResults<typename AccumulatorOf<T>::Type>& results,
                          const NegativeRowsLayout& layout, void* workspace, MatmulPath path,
                          cudaStream_t stream) {
  using A = typename AccumulatorOf<T>::Type;
  auto* const bits = at<uint32_t>(workspace, layout.bits);
  const NegativeParts<A> parts = {at<OnlineLse<A>>(workspace, layout.lse),
                                  at<A>(workspace, layout.peak), layout.splits};
  Launches launches;
  for (int64_t first = 0; first < problem.problem.batch; first += layout.chunk_rows) {
    const LossProblem<T> rows = rows_from(problem.problem, first, layout.chunk_rows);
    const NegativesProblem<T> part = part_of(problem, rows, first);
    const NegativeResults<A> out = {results.loss + first, nullptr, results.peak + first};
    launches.then([&] { return find_hits(part, bits, stream); })
        .then([&] {
          return score_negatives(part, bits, parts, static_cast<A*>(nullptr), 0, path, stream);
        })
        .then([&] { return finish_negatives(part, parts, out, stream); });
  }
  return launches.error();
}

template <class T>
int64_t negative_row_bytes(int64_t samples) {
  return bit_bytes(samples) + 3 * static_cast<int64_t>(sizeof(typename AccumulatorOf<T>::Type));
}

template <class T>
cudaError_t negative_grads(const NegativesProblem<T>& problem, const LossGradients<T>& gradients,
                           const WorkspaceLayout& layout, void* workspace, MatmulPath path,
                           cudaStream_t stream) {
  using A = typename AccumulatorOf<T>::Type;
  const NegativeParts<A> parts = {at<OnlineLse<A>>(workspace, layout.parts),
                                  at<A>(workspace, layout.flags), layout.score_splits};
  A* const logits = at<A>(workspace, layout.logits);
  auto* const bits = at<uint32_t>(workspace, layout.beside);
  const int64_t bits_end = layout.beside + layout.chunk_rows * bit_bytes(problem.problem.samples);
  A* const loss = at<A>(workspace, bits_end);
  const NegativeResults<A> out = {loss, loss + layout.chunk_rows, loss + 2 * layout.chunk_rows};
  const auto loss_of = [&](Launches& launches, int64_t first, GradChunk<T>& chunk) {
    const NegativesProblem<T> part = part_of(problem, chunk.problem, first);
    chunk.loss = out.loss;
    chunk.lse = out.lse;
    launches.then([&] { return find_hits(part, bits, stream); })
        .then([&] {
          return score_negatives(part, bits, parts, logits, layout.logits_stride, path, stream);
        })
        .then([&] { return finish_negatives(part, parts, out, stream); })
        .then([&] { return negative_probabilities(part, chunk, stream); });
  };
  return grads_by_chunks(problem.problem, gradients, layout, workspace, path, stream, loss_of);
}

#define SSC_NEGATIVE_LOSS_INSTANCE(T)                                                             \
  template NegativeRowsLayout negative_rows_layout<T>(int64_t, int64_t, int);                     \
  template cudaError_t negative_rows(const NegativesProblem<T>&,                                  \
                                     const NegativeResults<AccumulatorOf<T>::Type>&,              \
                                     const NegativeRowsLayout&, void*, MatmulPath, cudaStream_t); \
  template int64_t negative_row_bytes<T>(int64_t);                                                \
  template cudaError_t negative_grads(const NegativesProblem<T>&, const LossGradients<T>&,        \
                                      const WorkspaceLayout&, void*, MatmulPath, cudaStream_t)
SSC_FOR_TYPES(SSC_NEGATIVE_LOSS_INSTANCE);
#undef SSC_NEGATIVE_LOSS_INSTANCE

}  // namespace ssc::cuda
