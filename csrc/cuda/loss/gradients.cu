// The stages of the backward that are not matmuls: probabilities from logits, sums over splits and
// classes. All are bound by memory and read and write each number once.
#include "csrc/cuda/device/grid.h"
#include "csrc/cuda/device/number.h"
#include "csrc/cuda/loss/gradients.h"
#include "csrc/cuda/loss/probability.h"

namespace ssc::cuda {
namespace {

// One block: B numbers are few.
template <class A>
__global__ void __launch_bounds__(kElementThreads)
    scale_of_rows_kernel(const A* row_scale, const int64_t* target, int64_t ignore_index,
                         int64_t rows, A* kappa) {
  __shared__ A largest[kElementThreads / 32];
  A most = 0;
  for (int64_t i = threadIdx.x; i < rows; i += kElementThreads) {
    if (target[i] == ignore_index) continue;
    const A k = row_scale[i] < A(0) ? -row_scale[i] : row_scale[i];
    most = k > most ? k : most;
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const A other = __shfl_xor_sync(~0u, most, offset);
    most = other > most ? other : most;
  }
  if (threadIdx.x % 32 == 0) largest[threadIdx.x / 32] = most;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (const A other : largest) most = other > most ? other : most;
  // Nothing to scale where all k are 0; an infinite one comes through by itself.
  const bool usable = most > A(0) && most - most == A(0);
  *kappa = usable ? power_below(most) : A(1);
}

template <class T>
__global__ void __launch_bounds__(kElementThreads)
    probabilities_kernel(const __grid_constant__ GradChunk<T> c) {
  using A = typename GradChunk<T>::A;
  const LossProblem<T>& p = c.problem;
  const int64_t row = blockIdx.x;
  const bool counts = p.target[row] != p.ignore_index;
  const A k = counts ? c.row_scale[row] / *c.kappa * p.inv_temperature : A(0);
  const A lse = c.lse[row];
  if (blockIdx.y == 0 && threadIdx.x == 0) {
    c.target_coefficient[row] = counts ? k * row_expm1(-c.loss[row]) : A(0);
  }
  for (int64_t s = static_cast<int64_t>(blockIdx.y) * kElementThreads + threadIdx.x; s < c.stride;
       s += static_cast<int64_t>(gridDim.y) * kElementThreads) {
    const A e = counts && s < p.samples ? k * sum_exp(c.logits[row * c.stride + s] - lse) : A(0);
    c.probabilities[row * c.stride + s] = to_probability(c, e);
  }
}

template <class T>
struct InputGradArguments {
  using A = typename GradChunk<T>::A;
  GradChunk<T> chunk;
  const A* partial;
  int splits;
  T* grad;
  int64_t grad_stride;
};

template <class T>
__global__ void __launch_bounds__(kElementThreads)
    input_grad_kernel(const __grid_constant__ InputGradArguments<T> a) {
  using A = typename GradChunk<T>::A;
  const LossProblem<T>& p = a.chunk.problem;
  const int64_t row = blockIdx.x;
  const int64_t target = p.target[row];
  const bool counts = target != p.ignore_index;
  const bool valid = counts && static_cast<uint64_t>(target) < static_cast<uint64_t>(p.classes);
  const A kappa = *a.chunk.kappa;
  const A coefficient = valid ? a.chunk.target_coefficient[row] : A(0);
  for (int64_t d = static_cast<int64_t>(blockIdx.y) * kElementThreads + threadIdx.x; d < p.dim;
       d += static_cast<int64_t>(gridDim.y) * kElementThreads) {
    A sum = 0;
    for (int split = 0; counts && split < a.splits; ++split) {
      sum += a.partial[(split * p.batch + row) * p.dim + d];
    }
    if (valid) sum += coefficient * to_accumulator(p.weight[target * p.weight_stride + d]);
    a.grad[row * a.grad_stride + d] = to_storage<T>(kappa * sum);
  }
}

// 32 columns by 8 threads a column, each with every eighth row; their sums are added in order.
constexpr int kColumnThreads = 8;

template <class T>
__global__ void __launch_bounds__(32 * kColumnThreads)
    bias_products_kernel(const __grid_constant__ GradChunk<T> c, typename GradChunk<T>::A* sums,
                         bool accumulate) {
  using A = typename GradChunk<T>::A;
  __shared__ A part[kColumnThreads][32];
  const int lane = static_cast<int>(threadIdx.x) % 32, y = static_cast<int>(threadIdx.x) / 32;
  const int64_t s = static_cast<int64_t>(blockIdx.x) * 32 + lane;
  A sum = 0;
  if (s < c.problem.samples) {
    for (int64_t row = y; row < c.problem.batch; row += kColumnThreads) {
      sum += to_accumulator(c.probabilities[row * c.stride + s]);
    }
  }
  part[y][lane] = sum;
  __syncthreads();
  if (y != 0 || s >= c.problem.samples) return;
  for (int other = 1; other < kColumnThreads; ++other) sum += part[other][lane];
  sums[s] = accumulate ? sums[s] + sum : sum;
}

// A block per entry of the sorted list. Only the first entry of a class works.
template <class T>
__global__ void __launch_bounds__(kElementThreads)
    class_grads_kernel(const __grid_constant__ LossProblem<T> p,
                       const __grid_constant__ ClassGrads<T> g) {
  using A = typename ClassGrads<T>::A;
  const int64_t first = blockIdx.x;
  const int64_t id = g.classes[first];
  const bool inside = static_cast<uint64_t>(id) < static_cast<uint64_t>(p.classes);
  const bool leads = inside && (first == 0 || g.classes[first - 1] != id);
  if (!leads && !g.sparse) return;
  const bool targets_count = id != p.ignore_index;
  const int64_t out = g.sparse ? first : id;
  const A kappa = *g.kappa;
  if (g.sparse && threadIdx.x == 0) g.grad_classes[first] = inside ? id : 0;
  for (int64_t d = threadIdx.x; d < p.dim; d += kElementThreads) {
    A sum = 0;
    for (int64_t j = first; leads && j < g.entries && g.classes[j] == id; ++j) {
      const int64_t entry = g.order[j], row = entry - p.samples;
      if (row < 0) {
        sum += g.sample_rows[entry * p.dim + d];
      } else if (targets_count) {
        sum += g.target_coefficient[row] * to_accumulator(p.input[row * p.input_stride + d]);
      }
    }
    g.grad_weight[out * g.grad_stride + d] = to_storage<T>(kappa * sum);
  }
  if (g.grad_bias == nullptr || threadIdx.x != 0) return;
  A sum = 0;
  for (int64_t j = first; leads && j < g.entries && g.classes[j] == id; ++j) {
    const int64_t entry = g.order[j], row = entry - p.samples;
    sum += row < 0 ? g.sample_sums[entry] : g.target_coefficient[row];
  }
  g.grad_bias[out] = to_storage<T>(kappa * sum);
}

}  // namespace

template <class T>
cudaError_t scale_of_rows(const LossProblem<T>& problem,
                          const typename LossProblem<T>::Accumulator* row_scale,
                          typename LossProblem<T>::Accumulator* kappa, cudaStream_t stream) {
  return launch(scale_of_rows_kernel<typename LossProblem<T>::Accumulator>, 1, kElementThreads, 0,
                stream, row_scale, problem.target, problem.ignore_index, problem.batch, kappa);
}

template <class T>
cudaError_t probabilities(const GradChunk<T>& chunk, cudaStream_t stream) {
  if (chunk.problem.batch == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(chunk.problem.batch), row_blocks(chunk.stride));
  return launch(probabilities_kernel<T>, grid, kElementThreads, 0, stream, chunk);
}

template <class T>
cudaError_t input_grad(const GradChunk<T>& chunk, const typename GradChunk<T>::A* partial,
                       int splits, T* grad, int64_t grad_stride, cudaStream_t stream) {
  if (chunk.problem.batch == 0 || chunk.problem.dim == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(chunk.problem.batch), row_blocks(chunk.problem.dim));
  const InputGradArguments<T> arguments{chunk, partial, splits, grad, grad_stride};
  return launch(input_grad_kernel<T>, grid, kElementThreads, 0, stream, arguments);
}

template <class T>
cudaError_t bias_products(const GradChunk<T>& chunk, typename GradChunk<T>::A* sums,
                          bool accumulate, cudaStream_t stream) {
  if (chunk.problem.samples == 0) return cudaSuccess;
  return launch(bias_products_kernel<T>, static_cast<unsigned>(ceil_div(chunk.problem.samples, 32)),
                32 * kColumnThreads, 0, stream, chunk, sums, accumulate);
}

template <class T>
cudaError_t class_grads(const LossProblem<T>& problem, const ClassGrads<T>& grads,
                        cudaStream_t stream) {
  if (grads.entries == 0) return cudaSuccess;
  return launch(class_grads_kernel<T>, static_cast<unsigned>(grads.entries), kElementThreads, 0,
                stream, problem, grads);
}

#define SSC_GRADS_INSTANCE(T)                                                                    \
  template cudaError_t scale_of_rows(const LossProblem<T>&, const LossProblem<T>::Accumulator*,  \
                                     LossProblem<T>::Accumulator*, cudaStream_t);                \
  template cudaError_t probabilities(const GradChunk<T>&, cudaStream_t);                         \
  template cudaError_t input_grad(const GradChunk<T>&, const GradChunk<T>::A*, int, T*, int64_t, \
                                  cudaStream_t);                                                 \
  template cudaError_t bias_products(const GradChunk<T>&, GradChunk<T>::A*, bool, cudaStream_t); \
  template cudaError_t class_grads(const LossProblem<T>&, const ClassGrads<T>&, cudaStream_t)
SSC_FOR_TYPES(SSC_GRADS_INSTANCE);
#undef SSC_GRADS_INSTANCE

}  // namespace ssc::cuda
