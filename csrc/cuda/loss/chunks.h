// A batch in chunks of rows: how a workspace is cut, chains of launches, and the way through the
// stages of the gradients, whichever loss they are of.
#pragma once

#include <algorithm>

#include "csrc/cuda/loss/step.h"

namespace ssc::cuda {

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

// Chunks and layouts of workspaces.
constexpr int64_t kChunkBudget = int64_t{64} << 20;
constexpr int64_t kTileRows = 128;

// Cuts a workspace into buffers, by their offsets.
class Buffers {
 public:
  static constexpr int64_t kAlignment = 256;

  int64_t take(int64_t bytes) {
    const int64_t offset = end_;
    end_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return offset;
  }
  int64_t bytes() const { return end_; }

 private:
  int64_t end_ = 0;
};

// Rows of which each takes `row_bytes`: whole tiles, while there are that many, and at least one.
inline int64_t rows_of_chunk(int64_t room, int64_t row_bytes, int64_t batch) {
  const int64_t rows = std::max<int64_t>(room / row_bytes, 1);
  return std::min(rows > kTileRows ? rows / kTileRows * kTileRows : rows, batch);
}

// The problem of at most `rows` of the rows, from `first` on.
template <class T>
LossProblem<T> rows_from(LossProblem<T> problem, int64_t first, int64_t rows) {
  problem.batch = std::min(rows, problem.batch - first);
  problem.input += first * problem.input_stride;
  problem.target += first;
  if (problem.target_log_expected_count != nullptr) problem.target_log_expected_count += first;
  return problem;
}

template <class To>
To* at(void* workspace, int64_t offset) {
  return reinterpret_cast<To*>(static_cast<char*>(workspace) + offset);
}

// loss_of(launches, first, chunk) computes the chunk's losses and probabilities, and its
// coefficients where a row's target is a class: `first` is the chunk's first row in the batch, chunk.loss and
// chunk.lse are to be set. Then come the products, chunk by chunk, and the gradients by class.
template <class T, class LossOf>
cudaError_t grads_by_chunks(const LossProblem<T>& problem, const LossGradients<T>& gradients,
                            const WorkspaceLayout& layout, void* workspace, MatmulPath path,
                            cudaStream_t stream, LossOf&& loss_of) {
  using A = typename LossProblem<T>::Accumulator;
  A* const kappa = at<A>(workspace, layout.kappa);
  A* const coefficient = at<A>(workspace, layout.target_coefficient);
  A* const partial = at<A>(workspace, layout.input_partial);
  A* const sample_rows = at<A>(workspace, layout.sample_rows);
  A* const sample_sums = gradients.bias == nullptr ? nullptr : at<A>(workspace, layout.sample_sums);
  Launches launches;
  launches.then([&] { return scale_of_rows(problem, gradients.row_scale, kappa, stream); });
  int64_t first = 0;
  do {  // once for an empty batch too: its products are zeros
    GradChunk<T> chunk = {rows_from(problem, first, layout.chunk_rows),
                          nullptr,
                          nullptr,
                          gradients.row_scale + first,
                          kappa,
                          at<A>(workspace, layout.logits),
                          at<T>(workspace, layout.probabilities),
                          coefficient + first,
                          layout.logits_stride,
                          path};
    const InputGrad<T> input = {partial, layout.input_splits,
                                gradients.input + first * gradients.input_stride,
                                gradients.input_stride};
    const bool accumulate = first > 0;
    loss_of(launches, first, chunk);
    launches.then([&] { return input_products(chunk, input, stream); })
        .then([&] { return input_grad(chunk, input, stream); })
        .then([&] { return weight_products(chunk, sample_rows, accumulate, stream); });
    if (sample_sums != nullptr) {
      launches.then([&] { return bias_products(chunk, sample_sums, accumulate, stream); });
    }
    first += layout.chunk_rows;
  } while (first < problem.batch);
  const ClassGrads<T> classes = {gradients.classes,
                                 gradients.order,
                                 gradients.entries,
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

}  // namespace ssc::cuda
