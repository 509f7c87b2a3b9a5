#include "csrc/cuda/device/grid.h"
#include "csrc/cuda/loss/forward.h"

namespace ssc::cuda {
namespace {

constexpr int64_t kAlign = 256;

template <class A>
int64_t lse_bytes(int64_t batch, int splits) {
  return ceil_div(splits * batch * static_cast<int64_t>(sizeof(OnlineLse<A>)), kAlign) * kAlign;
}

// The problem whose samples are the classes [begin, end), in order and with nothing to correct.
template <class T>
LossProblem<T> of_classes(LossProblem<T> problem, int64_t begin, int64_t end) {
  problem.weight += begin * problem.weight_stride;
  if (problem.bias != nullptr) problem.bias += begin;
  problem.ids = nullptr;
  problem.classes = problem.samples = end - begin;
  problem.log_expected_count = problem.target_log_expected_count = nullptr;
  problem.remove_accidental_hits = true;
  return problem;
}

}  // namespace

template <class T>
int64_t loss_rows_bytes(int64_t batch, int splits) {
  return lse_bytes<typename AccumulatorOf<T>::Type>(batch, splits) +
         ceil_div(splits * batch, kAlign) * kAlign;
}

template <class T>
cudaError_t loss_rows(const LossProblem<T>& problem,
                      const RowResults<typename LossProblem<T>::Accumulator>& results, int splits,
                      void* workspace, MatmulPath path, cudaStream_t stream) {
  using A = typename LossProblem<T>::Accumulator;
  auto* const beaten = static_cast<uint8_t*>(workspace) + lse_bytes<A>(problem.batch, splits);
  const RowParts<A> parts = {static_cast<OnlineLse<A>*>(workspace), beaten, splits};
  cudaError_t error = target_logits(problem, results, stream);
  if (error == cudaSuccess) {
    error = score(problem, results, parts, static_cast<A*>(nullptr), 0, path, stream);
  }
  return error == cudaSuccess ? finish_rows(problem, results, parts, stream) : error;
}

template <class T>
cudaError_t exact_loss_rows(const LossProblem<T>& problem,
                            const RowResults<typename LossProblem<T>::Accumulator>& results,
                            int splits, void* workspace, MatmulPath path, cudaStream_t stream) {
  return loss_rows(of_classes(problem, 0, problem.classes), results, splits, workspace, path,
                   stream);
}

template <class T>
cudaError_t logits(const LossProblem<T>& problem, int64_t begin, int64_t end,
                   typename LossProblem<T>::Accumulator* out, int64_t out_stride, int splits,
                   MatmulPath path, cudaStream_t stream) {
  using A = typename LossProblem<T>::Accumulator;
  return score(of_classes(problem, begin, end), RowResults<A>{},
               RowParts<A>{nullptr, nullptr, splits}, out, out_stride, path, stream);
}

#define SSC_LOSS_ROWS_INSTANCE(T)                                                                  \
  template int64_t loss_rows_bytes<T>(int64_t, int);                                               \
  template cudaError_t loss_rows(const LossProblem<T>&,                                            \
                                 const RowResults<LossProblem<T>::Accumulator>&, int, void*,       \
                                 MatmulPath, cudaStream_t);                                        \
  template cudaError_t exact_loss_rows(const LossProblem<T>&,                                      \
                                       const RowResults<LossProblem<T>::Accumulator>&, int, void*, \
                                       MatmulPath, cudaStream_t);                                  \
  template cudaError_t logits(const LossProblem<T>&, int64_t, int64_t,                             \
                              LossProblem<T>::Accumulator*, int64_t, int, MatmulPath,              \
                              cudaStream_t)
SSC_FOR_TYPES(SSC_LOSS_ROWS_INSTANCE);
#undef SSC_LOSS_ROWS_INSTANCE

}  // namespace ssc::cuda
