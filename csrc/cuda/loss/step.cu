#include "csrc/cuda/device/grid.h"
#include "csrc/cuda/loss/chunks.h"

namespace ssc::cuda {
template <class T>
WorkspaceLayout workspace_layout(int64_t batch, int64_t dim, int64_t samples, int multiprocessors,
                                 int64_t row_bytes_beside) {
  using A = typename AccumulatorOf<T>::Type;
  constexpr int64_t kAccumulator = sizeof(A), kElement = sizeof(T);
  constexpr bool kInPlace = sizeof(T) == sizeof(A);  // P takes the place of the logits
  WorkspaceLayout layout{};
  layout.logits_stride = ceil_div(samples, 8) * 8;
  const int64_t matrix_bytes = kInPlace ? kAccumulator : kAccumulator + kElement;
  // Parts of `score` take splits · rows of these; score_splits bounds that.
  constexpr int64_t kPart = sizeof(OnlineLse<A>) + sizeof(A);
  constexpr int64_t kBuffers = 10;
  const int64_t room =
      kChunkBudget - kBuffers * Buffers::kAlignment - most_score_parts(0, multiprocessors) * kPart;
  // One split's sums of a row go out as its gradient.
  const auto partial_bytes = [&](int splits) {
    return splits > 1 ? splits * dim * kAccumulator : int64_t{0};
  };
  const auto row_bytes = [&](int splits) {
    return layout.logits_stride * matrix_bytes + partial_bytes(splits) + kPart + row_bytes_beside;
  };
  const auto rows_within = [&](int splits) {
    return rows_of_chunk(room, row_bytes(splits), batch);
  };
  const int64_t tiles_d = ceil_div(dim, kTileRows);
  const int64_t tiles_m = std::max<int64_t>(ceil_div(rows_within(1), kTileRows), 1);
  layout.input_splits = static_cast<int>(
      std::clamp<int64_t>(multiprocessors / std::max<int64_t>(tiles_m * tiles_d, 1), 1,
                          std::max<int64_t>(ceil_div(samples, 8 * kTileRows), 1)));
  layout.chunk_rows = rows_within(layout.input_splits);
  layout.score_splits = score_splits(layout.chunk_rows, samples, multiprocessors);

  Buffers buffers;
  const auto take = [&](int64_t bytes) { return buffers.take(bytes); };
  const int64_t elements = layout.chunk_rows * layout.logits_stride;
  layout.logits = take(elements * kAccumulator);
  layout.probabilities = kInPlace ? layout.logits : take(elements * kElement);
  const int64_t parts = layout.score_splits * layout.chunk_rows;
  layout.parts = take(parts * static_cast<int64_t>(sizeof(OnlineLse<A>)));
  layout.flags = take(parts * kAccumulator);
  layout.beside = take(layout.chunk_rows * row_bytes_beside);
  layout.kappa = take(kAccumulator);
  layout.target_coefficient = take(batch * kAccumulator);
  layout.input_partial = take(layout.chunk_rows * partial_bytes(layout.input_splits));
  layout.sample_rows = take(samples * dim * kAccumulator);
  layout.sample_sums = take(samples * kAccumulator);
  layout.bytes = buffers.bytes();
  return layout;
}

template <class T>
cudaError_t loss_and_grads(const LossProblem<T>& problem,
                           const RowResults<typename LossProblem<T>::Accumulator>& results,
                           const LossGradients<T>& gradients, const WorkspaceLayout& layout,
                           void* workspace, MatmulPath path, cudaStream_t stream) {
  using A = typename LossProblem<T>::Accumulator;
  const RowParts<A> parts = {at<OnlineLse<A>>(workspace, layout.parts),
                             at<uint8_t>(workspace, layout.flags), layout.score_splits};
  A* const logits = at<A>(workspace, layout.logits);
  const auto loss_of = [&](Launches& launches, int64_t first, GradChunk<T>& chunk) {
    const LossProblem<T>& rows = chunk.problem;
    const RowResults<A> out = {results.loss + first, results.lse + first,
                               results.target_logit + first, results.error + first};
    chunk.loss = out.loss;
    chunk.lse = out.lse;
    launches.then([&] { return target_logits(rows, out, stream); })
        .then([&] { return score(rows, out, parts, logits, layout.logits_stride, path, stream); })
        .then([&] { return finish_rows(rows, out, parts, stream); })
        .then([&] { return probabilities(chunk, stream); });
  };
  return grads_by_chunks(problem, gradients, layout, workspace, path, stream, loss_of);
}

#define SSC_LOSS_AND_GRADS_INSTANCE(T)                                                   \
  template WorkspaceLayout workspace_layout<T>(int64_t, int64_t, int64_t, int, int64_t); \
  template cudaError_t loss_and_grads(                                                   \
      const LossProblem<T>&, const RowResults<LossProblem<T>::Accumulator>&,             \
      const LossGradients<T>&, const WorkspaceLayout&, void*, MatmulPath, cudaStream_t)
SSC_FOR_TYPES(SSC_LOSS_AND_GRADS_INSTANCE);
#undef SSC_LOSS_AND_GRADS_INSTANCE

}  // namespace ssc::cuda
