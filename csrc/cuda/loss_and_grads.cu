#include <algorithm>

#include "csrc/cuda/grid.h"
#include "csrc/cuda/loss_and_grads.h"

namespace ssc::cuda {
namespace {

constexpr int64_t kChunkBudget = int64_t{64} << 20;
constexpr int64_t kTileRows = 128;
constexpr int64_t kAlignment = 256;
constexpr int64_t kBuffers = 9;  // of a layout

// The first error of a chain of launches; those after it don't run.
class Launches {
 public:
  template <class F>
  Launches& then(F&& f) {
    if (error_ == cudaSuccess) error_ = f();
    return *this;
  }
  cudaError_t error() const { return error_; }

 private:
  cudaError_t error_ = cudaSuccess;
};

template <class To>
To* at(void* workspace, int64_t offset) {
  return reinterpret_cast<To*>(static_cast<char*>(workspace) + offset);
}

}  // namespace

template <class T>
WorkspaceLayout workspace_layout(int64_t batch, int64_t dim, int64_t samples, int multiprocessors) {
  using A = typename AccumulatorOf<T>::Type;
  constexpr int64_t kAccumulator = sizeof(A), kElement = sizeof(T);
  constexpr bool kInPlace = sizeof(T) == sizeof(A);  // P takes the place of the logits
  WorkspaceLayout layout{};
  layout.logits_stride = ceil_div(samples, 8) * 8;
  const int64_t matrix_bytes = kInPlace ? kAccumulator : kAccumulator + kElement;
  // Parts of `score` take splits · rows of these; score_splits bounds that.
  constexpr int64_t kPart = sizeof(OnlineLse<A>) + sizeof(uint8_t);
  const int64_t room =
      kChunkBudget - kBuffers * kAlignment - most_score_parts(0, multiprocessors) * kPart;
  const auto row_bytes = [&](int splits) {
    return layout.logits_stride * matrix_bytes + splits * dim * kAccumulator + kPart;
  };
  // Chunks of whole tiles of rows, while there are that many.
  const auto rows_within = [&](int splits) {
    const int64_t rows = std::max<int64_t>(room / row_bytes(splits), 1);
    return std::min(rows > kTileRows ? rows / kTileRows * kTileRows : rows, batch);
  };
  const int64_t tiles_d = ceil_div(dim, kTileRows);
  const int64_t tiles_m = std::max<int64_t>(ceil_div(rows_within(1), kTileRows), 1);
  layout.input_splits = static_cast<int>(
      std::clamp<int64_t>(multiprocessors / std::max<int64_t>(tiles_m * tiles_d, 1), 1,
                          std::max<int64_t>(ceil_div(samples, 8 * kTileRows), 1)));
  layout.chunk_rows = rows_within(layout.input_splits);
  layout.score_splits = score_splits(layout.chunk_rows, samples, multiprocessors);

  int64_t end = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t offset = end;
    end += ceil_div(bytes, kAlignment) * kAlignment;
    return offset;
  };
  const int64_t elements = layout.chunk_rows * layout.logits_stride;
  layout.logits = take(elements * kAccumulator);
  layout.probabilities = kInPlace ? layout.logits : take(elements * kElement);
  const int64_t parts = layout.score_splits * layout.chunk_rows;
  layout.parts = take(parts * static_cast<int64_t>(sizeof(OnlineLse<A>)));
  layout.beaten = take(parts);
  layout.kappa = take(kAccumulator);
  layout.target_coefficient = take(batch * kAccumulator);
  layout.input_partial = take(layout.input_splits * layout.chunk_rows * dim * kAccumulator);
  layout.sample_rows = take(samples * dim * kAccumulator);
  layout.sample_sums = take(samples * kAccumulator);
  layout.bytes = end;
  return layout;
}

template <class T>
cudaError_t loss_and_grads(const LossProblem<T>& problem,
                           const RowResults<typename LossProblem<T>::Accumulator>& results,
                           const LossGradients<T>& gradients, const WorkspaceLayout& layout,
                           void* workspace, MatmulPath path, cudaStream_t stream) {
  using A = typename LossProblem<T>::Accumulator;
  A* const kappa = at<A>(workspace, layout.kappa);
  A* const logits = at<A>(workspace, layout.logits);
  A* const coefficient = at<A>(workspace, layout.target_coefficient);
  A* const partial = at<A>(workspace, layout.input_partial);
  A* const sample_rows = at<A>(workspace, layout.sample_rows);
  A* const sample_sums = gradients.bias == nullptr ? nullptr : at<A>(workspace, layout.sample_sums);
  Launches launches;
  launches.then([&] { return scale_of_rows(problem, gradients.row_scale, kappa, stream); });
  int64_t first = 0;
  do {  // once for an empty batch too: its products are zeros
    LossProblem<T> rows = problem;
    rows.batch = std::min(layout.chunk_rows, problem.batch - first);
    rows.input += first * problem.input_stride;
    rows.target += first;
    if (rows.target_log_expected_count != nullptr) rows.target_log_expected_count += first;
    const RowResults<A> out = {results.loss + first, results.lse + first,
                               results.target_logit + first, results.error + first};
    const RowParts<A> parts = {at<OnlineLse<A>>(workspace, layout.parts),
                               at<uint8_t>(workspace, layout.beaten), layout.score_splits};
    const GradChunk<T> chunk = {rows,
                                out.loss,
                                out.lse,
                                gradients.row_scale + first,
                                kappa,
                                logits,
                                at<T>(workspace, layout.probabilities),
                                coefficient + first,
                                layout.logits_stride};
    T* const grad_input = gradients.input + first * gradients.input_stride;
    const bool accumulate = first > 0;
    launches.then([&] { return target_logits(rows, out, stream); })
        .then([&] { return score(rows, out, parts, logits, layout.logits_stride, path, stream); })
        .then([&] { return finish_rows(rows, out, parts, stream); })
        .then([&] { return probabilities(chunk, stream); })
        .then([&] { return input_products(chunk, partial, layout.input_splits, path, stream); })
        .then([&] {
          return input_grad(chunk, partial, layout.input_splits, grad_input, gradients.input_stride,
                            stream);
        })
        .then([&] { return weight_products(chunk, sample_rows, accumulate, path, stream); });
    if (sample_sums != nullptr) {
      launches.then([&] { return bias_products(chunk, sample_sums, accumulate, stream); });
    }
    first += layout.chunk_rows;
  } while (first < problem.batch);
  const ClassGrads<T> classes = {gradients.classes,
                                 gradients.order,
                                 problem.samples + problem.batch,
                                 sample_rows,
                                 sample_sums,
                                 coefficient,
                                 kappa,
                                 gradients.sparse,
                                 gradients.weight,
                                 gradients.weight_stride,
                                 gradients.bias,
                                 gradients.grad_classes};
  return launches.then([&] { return class_grads(problem, classes, stream); }).error();
}

#define SSC_LOSS_AND_GRADS_INSTANCE(T)                                          \
  template WorkspaceLayout workspace_layout<T>(int64_t, int64_t, int64_t, int); \
  template cudaError_t loss_and_grads(                                          \
      const LossProblem<T>&, const RowResults<LossProblem<T>::Accumulator>&,    \
      const LossGradients<T>&, const WorkspaceLayout&, void*, MatmulPath, cudaStream_t)
SSC_LOSS_AND_GRADS_INSTANCE(float);
SSC_LOSS_AND_GRADS_INSTANCE(double);
SSC_LOSS_AND_GRADS_INSTANCE(__nv_bfloat16);
SSC_LOSS_AND_GRADS_INSTANCE(__half);
#undef SSC_LOSS_AND_GRADS_INSTANCE

}  // namespace ssc::cuda
