// The backward of per-row negatives, from the logits that score_rows left behind.
//
// Global traffic, e = sizeof(T), A the accumulator: row_coefficients reads and writes B·S·sizeof(A)
// and writes 16 B·S of classes and entries; row_input_grad reads B·S·D·e of W; row_class_grads
// reads B·S·D·e of H, which the L2 cache mostly holds for a chunk, and reads and writes D·sizeof(A)
// for each distinct class.
#include "csrc/core/logit_correction.h"
#include "csrc/cuda/device/columns.h"
#include "csrc/cuda/device/grid.h"
#include "csrc/cuda/per_row/gather.h"
#include "csrc/cuda/per_row/per_row.h"

namespace ssc::cuda {
namespace {

constexpr int kThreads = 32 * kGatherWarps;

// c = k p dz/dx with x = (h · W + b) / τ, from z = softcap · tanh(x / softcap) − log n. Threads of
// x share a row, so that short rows leave none of a block idle.
template <class T>
__global__ void __launch_bounds__(kElementThreads)
    row_coefficients_kernel(const __grid_constant__ PerRowProblem<T> p,
                            const typename PerRowProblem<T>::Accumulator* lse,
                            const typename PerRowProblem<T>::Accumulator* row_scale,
                            typename PerRowProblem<T>::Accumulator* logits, int64_t* classes,
                            int64_t* entries) {
  using A = typename PerRowProblem<T>::Accumulator;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= p.batch) return;
  const bool counted = p.counted == nullptr || p.counted[row];
  const A k = counted ? row_scale[row] * p.inv_temperature : A(0);
#pragma unroll 1  // a number of turns to unroll would take a division of 64 bits
  for (int64_t s = blockIdx.y * blockDim.x + threadIdx.x; s < p.samples;
       s += gridDim.y * blockDim.x) {
    const int64_t at = row * p.samples + s;
    const A z = logits[at];
    const int64_t id = p.ids[at];
    const bool counts = counted && z != -static_cast<A>(__builtin_inf());
    A c = 0;
    if (counts) {
      const A e = p.sigmoid ? row_exp(z < A(0) ? z : -z) : A(0);
      const A probability = p.sigmoid ? (z < A(0) ? e : A(1)) / (A(1) + e) : row_exp(z - lse[row]);
      A slope = 1;
      if (p.softcap > A(0)) {
        const A count =
            p.log_count == nullptr ? A(0) : static_cast<A>(correction_of(p.log_count[at]));
        const A t = (z + count) / p.softcap;
        slope -= t * t;
      }
      c = k * probability * slope;
    }
    logits[at] = c;
    const bool inside = static_cast<uint64_t>(id) < static_cast<uint64_t>(p.classes);
    classes[at] = counts && inside ? id : p.classes;
    entries[at] = at;
  }
}

// A block per row and 32 loads of columns. Each warp adds up every kGatherWarps-th group of 32
// samples, the block the warps' sums, in order.
template <class T, bool kWide>
__global__ void __launch_bounds__(kThreads)
    row_input_grad_kernel(const __grid_constant__ PerRowProblem<T> p,
                          const typename PerRowProblem<T>::Accumulator* coefficients, T* grad,
                          int64_t grad_stride) {
  using A = typename PerRowProblem<T>::Accumulator;
  constexpr int kElements = kLoadElements<T, kWide>;
  using Load = Elements<T, kElements>;
  __shared__ A sums[kGatherWarps][kElements][32];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t row = blockIdx.x;
  const int64_t d = (static_cast<int64_t>(blockIdx.y) * 32 + lane) * kElements;
  A sum[kElements] = {};
  for (int64_t first = warp * 32; first < p.samples; first += kThreads) {
    const int64_t s = first + lane, at = row * p.samples + s;
    A own = 0;
    int64_t id = 0;
    if (s < p.samples) {
      own = coefficients[at];
      id = p.ids[at];
      if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(p.classes)) id = 0;
    }
    const unsigned all = __ballot_sync(~0u, own != A(0));  // NaN counts
    for (int next = 0; next < 32; next += kRowsInFlight) {
      if ((all >> next & ((1u << kRowsInFlight) - 1)) == 0) continue;
      Load w[kRowsInFlight] = {};
      A c[kRowsInFlight];
#pragma unroll
      for (int k = 0; k < kRowsInFlight; ++k) {
        c[k] = __shfl_sync(~0u, own, next + k);
        const int64_t source = __shfl_sync(~0u, id, next + k);
        if (c[k] != A(0) && d < p.dim)
          w[k] = load_vector<Load>(p.weight + source * p.weight_stride + d);
      }
#pragma unroll
      for (int k = 0; k < kRowsInFlight; ++k) {
#pragma unroll
        for (int e = 0; e < kElements; ++e) sum[e] += c[k] * to_accumulator(w[k].at[e]);
      }
    }
  }
#pragma unroll
  for (int e = 0; e < kElements; ++e) sums[warp][e][lane] = sum[e];
  __syncthreads();
  if (warp != 0 || d >= p.dim) return;
  Load out;
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    for (int w = 1; w < kGatherWarps; ++w) sum[e] += sums[w][e][lane];
    out.at[e] = to_storage<T>(sum[e]);
  }
  store_vector(grad + row * grad_stride + d, out);
}

// A warp per entry of the sorted list. Only the first entry of a class works, through all of them,
// 32 numbers at a time and a load of columns a lane.
template <class T, bool kWide>
__global__ void __launch_bounds__(kThreads, 4) row_class_grads_kernel(
    const __grid_constant__ PerRowProblem<T> p,
    const __grid_constant__ RowClassGrads<typename PerRowProblem<T>::Accumulator> g) {
  using A = typename PerRowProblem<T>::Accumulator;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kGatherWarps + warp;
  if (first >= g.entries) return;  // whole warps
  const int64_t id = g.classes[first];
  if (id >= p.classes || (first > 0 && g.classes[first - 1] == id)) return;
  const bool listed = g.grad_classes != nullptr;
  const int64_t out = listed ? first : id;
  if (listed && lane == 0) g.grad_classes[first] = id;
  A total = 0;
  constexpr int kElements = kWide ? kColumnElements<T> : 1;  // 16 bytes of sums
  using Load = Elements<T, kElements>;
  for (int64_t column = 0; column < p.dim; column += 32 * kElements) {
    const int64_t d = column + lane * kElements;
    A sum[kElements] = {};
    for (int64_t base = first; base < g.entries && g.classes[base] == id; base += 32) {
      const int64_t j = base + lane;
      const bool same = j < g.entries && g.classes[j] == id;
      const int64_t entry = same ? g.order[j] : 0;
      const A own = same ? g.coefficients[entry] : A(0);
      // Below 2^31, and a division of 64 bits is a function with a stack frame.
      const unsigned row = static_cast<unsigned>(entry) / static_cast<unsigned>(p.samples);
      const int count = __popc(__ballot_sync(~0u, same));
      for (int next = 0; next < count; next += kRowsInFlight) {
        Load h[kRowsInFlight] = {};
        A c[kRowsInFlight];
#pragma unroll
        for (int k = 0; k < kRowsInFlight; ++k) {
          if (next + k >= count) break;  // whole warps
          c[k] = __shfl_sync(~0u, own, next + k);
          const auto source = static_cast<int64_t>(__shfl_sync(~0u, row, next + k));
          if (d < p.dim) h[k] = load_vector<Load>(p.input + source * p.input_stride + d);
        }
#pragma unroll
        for (int k = 0; k < kRowsInFlight; ++k) {
          if (next + k >= count) break;
#pragma unroll
          for (int e = 0; e < kElements; ++e) sum[e] += c[k] * to_accumulator(h[k].at[e]);
          if (column == 0) total += c[k];
        }
      }
    }
    if (d >= p.dim) continue;
    A* const to = g.grad_weight + out * p.dim + d;
    auto all = load_vector<Elements<A, kElements>>(to);
#pragma unroll
    for (int e = 0; e < kElements; ++e) all.at[e] += sum[e];
    store_vector(to, all);
  }
  if (g.grad_bias != nullptr && lane == 0) g.grad_bias[out] += total;
}

}  // namespace

template <class T>
cudaError_t row_coefficients(const PerRowProblem<T>& problem,
                             const typename PerRowProblem<T>::Accumulator* lse,
                             const typename PerRowProblem<T>::Accumulator* row_scale,
                             typename PerRowProblem<T>::Accumulator* logits, int64_t* classes,
                             int64_t* entries, cudaStream_t stream) {
  if (problem.batch == 0 || problem.samples == 0) return cudaSuccess;
  unsigned share = 1;
  while (share < kElementThreads && share < problem.samples) share *= 2;
  const unsigned rows = kElementThreads / share;
  const dim3 grid(static_cast<unsigned>(ceil_div(problem.batch, rows)),
                  row_blocks(problem.samples));
  return launch(row_coefficients_kernel<T>, grid, dim3(share, rows), 0, stream, problem, lse,
                row_scale, logits, classes, entries);
}

template <class T>
cudaError_t row_input_grad(const PerRowProblem<T>& problem,
                           const typename PerRowProblem<T>::Accumulator* coefficients, T* grad,
                           int64_t grad_stride, cudaStream_t stream) {
  if (problem.batch == 0 || problem.dim == 0) return cudaSuccess;
  const bool wide = rows_are_wide(problem.weight, problem.weight_stride, problem.dim) &&
                    rows_are_wide(grad, grad_stride, problem.dim);
  const int64_t columns = 32 * (wide ? kLoadElements<T, true> : 1);
  const dim3 grid(static_cast<unsigned>(problem.batch),
                  static_cast<unsigned>(ceil_div(problem.dim, columns)));
  return launch(wide ? row_input_grad_kernel<T, true> : row_input_grad_kernel<T, false>, grid,
                kThreads, 0, stream, problem, coefficients, grad, grad_stride);
}

template <class T>
cudaError_t row_class_grads(const PerRowProblem<T>& problem,
                            const RowClassGrads<typename PerRowProblem<T>::Accumulator>& grads,
                            cudaStream_t stream) {
  if (grads.entries == 0) return cudaSuccess;
  const bool wide = problem.dim % kColumns == 0 &&
                    has_aligned_columns(problem.input, problem.input_stride) &&
                    has_aligned_columns(grads.grad_weight, problem.dim);
  return launch(wide ? row_class_grads_kernel<T, true> : row_class_grads_kernel<T, false>,
                static_cast<unsigned>(ceil_div(grads.entries, kGatherWarps)), kThreads, 0, stream,
                problem, grads);
}

#define SSC_PER_ROW_GRADS_INSTANCE(T)                                                            \
  template cudaError_t row_coefficients(                                                         \
      const PerRowProblem<T>&, const PerRowProblem<T>::Accumulator*,                             \
      const PerRowProblem<T>::Accumulator*, PerRowProblem<T>::Accumulator*, int64_t*, int64_t*,  \
      cudaStream_t);                                                                             \
  template cudaError_t row_input_grad(                                                           \
      const PerRowProblem<T>&, const PerRowProblem<T>::Accumulator*, T*, int64_t, cudaStream_t); \
  template cudaError_t row_class_grads(                                                          \
      const PerRowProblem<T>&, const RowClassGrads<PerRowProblem<T>::Accumulator>&, cudaStream_t)
SSC_FOR_TYPES(SSC_PER_ROW_GRADS_INSTANCE);
#undef SSC_PER_ROW_GRADS_INSTANCE

}  // namespace ssc::cuda
