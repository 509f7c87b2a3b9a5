// The stages of the backward that are not matmuls: probabilities from logits, sums over splits and
// classes. All are bound by memory and read and write each number once, four at a time.
#include "csrc/cuda/device/row_grid.h"
#include "csrc/cuda/loss/gradients.h"
#include "csrc/cuda/loss/row_probabilities.h"

namespace ssc::cuda {
namespace {

// One block: B numbers are few.
template <class A>
__global__ void __launch_bounds__(kElementThreads)
    scale_of_rows_kernel(const A* row_scale, A inv_temperature, const int64_t* target,
                         int64_t ignore_index, int64_t rows, A* kappa) {
  __shared__ A largest[kElementThreads / 32];
  A most = 0;
  for (int64_t i = threadIdx.x; i < rows; i += kElementThreads) {
    if (target[i] == ignore_index) continue;
    const A k = (row_scale[i] < A(0) ? -row_scale[i] : row_scale[i]) * inv_temperature;
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
  // Nothing to scale where all k are 0 or subnormal; an infinite one comes through by itself.
  const A power = power_below(most);
  *kappa = power > A(0) && most - most == A(0) ? power : A(1);
}

template <class T>
__global__ void __launch_bounds__(kElementThreads)
    probabilities_kernel(const __grid_constant__ GradChunk<T> c) {
  using A = typename GradChunk<T>::A;
  const LossProblem<T>& p = c.problem;
  const RowPlace place = row_place();
  if (place.row >= p.batch) return;
  const bool counts = p.target[place.row] != p.ignore_index;
  const A k = counts ? c.row_scale[place.row] * p.inv_temperature / *c.kappa : A(0);
  const A lse = c.lse[place.row];
  if (place.column == 0) {
    c.target_coefficient[place.row] = counts ? k * row_expm1(-c.loss[place.row]) : A(0);
  }
  write_probabilities(c, place, counts, [&](A z, int64_t) { return k * sum_exp(z - lse); });
}

template <class T>
struct InputGradArguments {
  GradChunk<T> chunk;
  InputGrad<T> out;
  RowColumns columns;
};

template <class T>
__global__ void __launch_bounds__(kElementThreads)
    input_grad_kernel(const __grid_constant__ InputGradArguments<T> a) {
  using A = typename GradChunk<T>::A;
  const LossProblem<T>& p = a.chunk.problem;
  const RowPlace place = row_place();
  const int64_t row = place.row;
  if (row >= p.batch) return;
  const int64_t target = p.target[row];
  const bool counts = target != p.ignore_index;
  const bool valid = counts && static_cast<uint64_t>(target) < static_cast<uint64_t>(p.classes);
  const A kappa = *a.chunk.kappa;
  const A coefficient = valid ? a.chunk.target_coefficient[row] : A(0);
  for (int64_t d = place.column; d < p.dim; d += column_step()) {
    Columns<A> sum = {};
    const A* from = a.out.partial + row * p.dim;
    for (int split = 0; counts && split < a.out.splits; ++split, from += p.batch * p.dim) {
      add_scaled(sum, A(1), read_columns<A>(from, d, a.columns));
    }
    if (valid) {
      const T* const of_target = p.weight + target * p.weight_stride;
      add_scaled(sum, coefficient, read_columns<A>(of_target, d, a.columns));
    }
    write_columns(scaled(kappa, sum), a.out.grad + row * a.out.grad_stride, d, a.columns);
  }
}

// 16 threads of four columns by 32 threads a column, each with every 32nd row; their sums are added
// in order.
constexpr int kColumnThreads = 32, kBiasLanes = 16, kBiasColumns = kBiasLanes * kColumns;

template <class T>
__global__ void __launch_bounds__(kBiasLanes* kColumnThreads,
                                  kFullBlocks<typename GradChunk<T>::A> / 2)
    bias_products_kernel(const __grid_constant__ GradChunk<T> c, typename GradChunk<T>::A* sums,
                         bool accumulate) {
  using A = typename GradChunk<T>::A;
  __shared__ __align__(16) A part[kColumnThreads][kBiasColumns];
  const int lane = static_cast<int>(threadIdx.x) % kBiasLanes;
  const int y = static_cast<int>(threadIdx.x) / kBiasLanes;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kBiasColumns;
  const int64_t column = first + lane * kColumns;
  const RowColumns columns = row_columns(c.problem.samples, true);
  Columns<A> sum = {};
  const auto add_rows = [&](auto read) {
#pragma unroll(sizeof(T) == 2 ? 4 : 2)  // 32 bytes under way
    for (int64_t row = y; row < c.problem.batch; row += kColumnThreads) {
      add_scaled(sum, A(1), read(c.probabilities + row * c.stride + column));
    }
  };
  // One branch for all rows, so that none comes between their loads.
  if (column < columns.whole) {
    add_rows([](const T* from) { return read_whole<A>(from); });
  } else if (column < columns.count) {
    add_rows([&](const T* from) { return read_part<A>(from, columns.count - column); });
  }
  write_whole(sum, part[y] + lane * kColumns);
  __syncthreads();
  const int own = static_cast<int>(threadIdx.x);
  const int64_t s = first + own;
  if (own >= kBiasColumns || s >= columns.count) return;
  A all = accumulate ? sums[s] : A(0);
  for (int other = 0; other < kColumnThreads; ++other) all += part[other][own];
  sums[s] = all;
}

// Threads of a row of the grid have an entry of the sorted list. Only the first entry of a class
// works.
template <class T>
__global__ void __launch_bounds__(kElementThreads, kFullBlocks<typename ClassGrads<T>::A>)
    class_grads_kernel(const __grid_constant__ LossProblem<T> p,
                       const __grid_constant__ ClassGrads<T> g,
                       const __grid_constant__ RowColumns columns) {
  using A = typename ClassGrads<T>::A;
  const RowPlace place = row_place();
  const int64_t first = place.row;
  if (first >= g.entries) return;
  const int64_t* const classes = g.classes + first;
  const int64_t* const order = g.order + first;
  const int64_t id = *classes;
  const bool inside = static_cast<uint64_t>(id) < static_cast<uint64_t>(p.classes);
  const bool leads = inside && (first == 0 || classes[-1] != id);
  if (!leads && !g.sparse) return;
  const bool targets_count = id != p.ignore_index;
  const int64_t out = g.sparse ? first : id;
  const A kappa = *g.kappa;
  if (g.sparse && place.column == 0) g.grad_classes[first] = inside ? id : 0;
  int count = 0;  // of the class's entries
  if (leads) {
    const int64_t most = g.entries - first;
    do ++count;
    while (count < most && classes[count] == id);
  }
  for (int64_t d = place.column; d < p.dim; d += column_step()) {
    Columns<A> sum = {};
    for (int j = 0; j < count; ++j) {
      const int64_t entry = order[j], row = entry - p.samples;
      if (row < 0) {
        add_scaled(sum, A(1), read_columns<A>(g.sample_rows + entry * p.dim, d, columns));
      } else if (targets_count) {
        add_scaled(sum, g.target_coefficient[row],
                   read_columns<A>(p.input + row * p.input_stride, d, columns));
      }
    }
    write_columns(scaled(kappa, sum), g.grad_weight + out * g.grad_stride, d, columns);
  }
  if (g.grad_bias == nullptr || place.column != 0) return;
  A sum = 0;
  for (int j = 0; j < count; ++j) {
    const int64_t entry = order[j], row = entry - p.samples;
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
                stream, row_scale, problem.inv_temperature, problem.target, problem.ignore_index,
                problem.batch, kappa);
}

template <class T>
cudaError_t probabilities(const GradChunk<T>& chunk, cudaStream_t stream) {
  if (chunk.problem.batch == 0) return cudaSuccess;
  const RowGrid grid = row_grid(chunk.problem.batch, chunk.stride);
  return launch(probabilities_kernel<T>, grid.blocks, grid.threads, 0, stream, chunk);
}

template <class T>
cudaError_t input_grad(const GradChunk<T>& chunk, const InputGrad<T>& out, cudaStream_t stream) {
  const LossProblem<T>& p = chunk.problem;
  if (out.splits == 1 || p.batch == 0 || p.dim == 0) return cudaSuccess;
  const bool aligned = has_aligned_columns(out.partial, p.dim) &&
                       has_aligned_columns(p.weight, p.weight_stride) &&
                       has_aligned_columns(out.grad, out.grad_stride);
  const RowGrid grid = row_grid(p.batch, p.dim);
  const InputGradArguments<T> arguments{chunk, out, row_columns(p.dim, aligned)};
  return launch(input_grad_kernel<T>, grid.blocks, grid.threads, 0, stream, arguments);
}

template <class T>
cudaError_t bias_products(const GradChunk<T>& chunk, typename GradChunk<T>::A* sums,
                          bool accumulate, cudaStream_t stream) {
  if (chunk.problem.samples == 0) return cudaSuccess;
  const int64_t blocks = ceil_div(chunk.problem.samples, kBiasColumns);
  return launch(bias_products_kernel<T>, static_cast<unsigned>(blocks), kBiasLanes * kColumnThreads,
                0, stream, chunk, sums, accumulate);
}

template <class T>
cudaError_t class_grads(const LossProblem<T>& problem, const ClassGrads<T>& grads,
                        cudaStream_t stream) {
  if (grads.entries == 0) return cudaSuccess;
  const bool aligned = has_aligned_columns(grads.sample_rows, problem.dim) &&
                       has_aligned_columns(problem.input, problem.input_stride) &&
                       has_aligned_columns(grads.grad_weight, grads.grad_stride);
  const RowGrid grid = row_grid(grads.entries, problem.dim);
  return launch(class_grads_kernel<T>, grid.blocks, grid.threads, 0, stream, problem, grads,
                row_columns(problem.dim, aligned));
}

#define SSC_GRADS_INSTANCE(T)                                                                    \
  template cudaError_t scale_of_rows(const LossProblem<T>&, const LossProblem<T>::Accumulator*,  \
                                     LossProblem<T>::Accumulator*, cudaStream_t);                \
  template cudaError_t probabilities(const GradChunk<T>&, cudaStream_t);                         \
  template cudaError_t input_grad(const GradChunk<T>&, const InputGrad<T>&, cudaStream_t);       \
  template cudaError_t bias_products(const GradChunk<T>&, GradChunk<T>::A*, bool, cudaStream_t); \
  template cudaError_t class_grads(const LossProblem<T>&, const ClassGrads<T>&, cudaStream_t)
SSC_FOR_TYPES(SSC_GRADS_INSTANCE);
#undef SSC_GRADS_INSTANCE

}  // namespace ssc::cuda
