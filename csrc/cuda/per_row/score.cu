// A block per row and split. A warp takes 32 samples at a time, a lane each for ids and logits; all
// lanes together gather the rows of W, kRowsInFlight of them at once.
//
// Global traffic of score_rows, with sizeof(T) = e: B·S·D·e for W; B·S·(8 + 4) for ids and counts;
// B·S·e for biases, a sector each; B·S·sizeof(A) of logits where they are wanted. h_i comes from L1
// but once.
#include <algorithm>

#include "csrc/core/logit_correction.h"
#include "csrc/core/online_lse.h"
#include "csrc/cuda/device/grid.h"
#include "csrc/cuda/per_row/gather.h"
#include "csrc/cuda/per_row/per_row.h"

namespace ssc::cuda {
namespace {

constexpr int kThreads = 32 * kGatherWarps;

template <class A>
__device__ __forceinline__ A lowest() {
  return -static_cast<A>(__builtin_inf());
}

template <class T>
__device__ __forceinline__ bool is_hit(const PerRowProblem<T>& p, int64_t row, int64_t id) {
  for (int64_t k = 0; k < p.num_hits; ++k) {
    if (p.hits[row * p.num_hits + k] == id) return true;
  }
  return false;
}

__device__ __forceinline__ float hyperbolic_tangent(float x) { return tanhf(x); }
__device__ __forceinline__ double hyperbolic_tangent(double x) { return tanh(x); }

template <class A>
__device__ __forceinline__ A softplus(A x) {
  const A positive = x > A(0) ? x : A(0);
  return positive + row_log1p(row_exp(x < A(0) ? x : -x));
}

// The products h · W_id of 32 samples, each in its lane. Lanes that don't want theirs get what they
// like.
template <class T, bool kWide>
__device__ __forceinline__ typename AccumulatorOf<T>::Type gather_products(
    const PerRowProblem<T>& p, const T* h, int64_t id, bool wanted) {
  using A = typename AccumulatorOf<T>::Type;
  constexpr int kElements = kLoadElements<T, kWide>;
  using Load = Elements<T, kElements>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const unsigned all = __ballot_sync(~0u, wanted);
  const int64_t safe = wanted ? id : 0;
  A product = 0;
  for (int first = 0; first < 32; first += kRowsInFlight) {
    if ((all >> first & ((1u << kRowsInFlight) - 1)) == 0) continue;
    const T* rows[kRowsInFlight];
    A sums[kRowsInFlight];
#pragma unroll
    for (int k = 0; k < kRowsInFlight; ++k) {
      rows[k] = p.weight + __shfl_sync(~0u, safe, first + k) * p.weight_stride;
      sums[k] = 0;
    }
#pragma unroll 1  // more loads in flight would spill
    for (int64_t d = lane * kElements; d < p.dim; d += 32 * kElements) {
      Load w[kRowsInFlight];
#pragma unroll
      for (int k = 0; k < kRowsInFlight; ++k) w[k] = load_vector<Load>(rows[k] + d);
      const Load x = load_vector<Load>(h + d);
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const A value = to_accumulator(x.at[e]);
#pragma unroll
        for (int k = 0; k < kRowsInFlight; ++k) sums[k] += value * to_accumulator(w[k].at[e]);
      }
    }
#pragma unroll
    for (int k = 0; k < kRowsInFlight; ++k) {
      const A sum = warp_sum(sums[k]);
      if (lane == first + k) product = sum;
    }
  }
  return product;
}

template <class A>
__device__ __forceinline__ RowPart<A> merge(const RowPart<A>& a, const RowPart<A>& b,
                                            bool sigmoid) {
  const A peak = a.peak > b.peak ? a.peak : b.peak;
  if (sigmoid) return {A(0), a.sum + b.sum, peak};
  const OnlineLse<A> both = merge_lse(OnlineLse<A>{a.max, a.sum}, OnlineLse<A>{b.max, b.sum},
                                      [](A x) { return sum_exp(x); });
  return {both.max, both.sum, peak};
}

// Three blocks: 24 warps with kRowsInFlight loads each keep more under way than DRAM needs.
template <class T, bool kWide>
__global__ void __launch_bounds__(kThreads, 3)
    score_rows_kernel(const __grid_constant__ PerRowProblem<T> p,
                      RowPart<typename PerRowProblem<T>::Accumulator>* parts,
                      typename PerRowProblem<T>::Accumulator* logits) {
  using A = typename PerRowProblem<T>::Accumulator;
  __shared__ RowPart<A> of_warp[kGatherWarps];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t row = blockIdx.x;
  const bool counted = p.counted == nullptr || p.counted[row];
  const RowPart<A> nothing = {p.sigmoid ? A(0) : lowest<A>(), A(0), lowest<A>()};
  RowPart<A> part = nothing;
  const int64_t step = static_cast<int64_t>(gridDim.y) * kThreads;
  for (int64_t first = static_cast<int64_t>(blockIdx.y) * kThreads + warp * 32; first < p.samples;
       first += step) {  // the same for the whole warp
    const int64_t s = first + lane, at = row * p.samples + s;
    const bool there = s < p.samples;
    const int64_t id = there ? p.ids[at] : -1;
    const A count =
        there && p.log_count != nullptr ? static_cast<A>(correction_of(p.log_count[at])) : A(0);
    const bool inside = static_cast<uint64_t>(id) < static_cast<uint64_t>(p.classes);
    const bool hit = inside && is_hit(p, row, id);  // −1 is no class, and no hit either
    const bool kept = there && counted && count != -lowest<A>() && !(hit && p.remove_hits);
    A z = gather_products<T, kWide>(p, p.input + row * p.input_stride, id, kept && inside);
    if (!kept) {
      z = lowest<A>();
    } else if (!inside) {
      z = static_cast<A>(__builtin_nan(""));
    } else {
      if (p.bias != nullptr) z += to_accumulator(p.bias[id]);
      z *= p.inv_temperature;
      if (p.softcap > A(0)) z = p.softcap * hyperbolic_tangent(z / p.softcap);
      z -= count;
    }
    if (there && logits != nullptr) logits[at] = z;
    if (kept) {
      const A term = p.sigmoid ? softplus(z) : A(1);
      part = merge(part, {z, term, hit ? lowest<A>() : z}, p.sigmoid);
    }
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const RowPart<A> other = {__shfl_xor_sync(~0u, part.max, offset),
                              __shfl_xor_sync(~0u, part.sum, offset),
                              __shfl_xor_sync(~0u, part.peak, offset)};
    part = merge(part, other, p.sigmoid);
  }
  if (lane == 0) of_warp[warp] = part;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kGatherWarps; ++w) part = merge(part, of_warp[w], p.sigmoid);
  parts[blockIdx.y * p.batch + row] = part;
}

template <class T>
__global__ void __launch_bounds__(kElementThreads)
    finish_rows_kernel(const __grid_constant__ PerRowProblem<T> p,
                       const RowPart<typename PerRowProblem<T>::Accumulator>* parts, int splits,
                       typename PerRowProblem<T>::Accumulator* losses,
                       typename PerRowProblem<T>::Accumulator* peaks,
                       typename PerRowProblem<T>::Accumulator* lses) {
  using A = typename PerRowProblem<T>::Accumulator;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= p.batch) return;
  A loss = 0, peak = 0, lse = 0;
  if (p.counted == nullptr || p.counted[row]) {
    RowPart<A> part = parts[row];
    for (int split = 1; split < splits; ++split) {
      part = merge(part, parts[split * p.batch + row], p.sigmoid);
    }
    peak = part.peak;
    // From the side where nothing cancels. An infinite r above all gives NaN, as anywhere.
    const A r = p.target_logit[row];
    const A above = part.max - r;
    if (p.sigmoid) {
      loss = part.sum;
    } else if (part.sum == A(0) || above <= A(0)) {
      loss = row_log1p(part.sum == A(0) ? A(0) : part.sum * row_exp(above)) + (r - r);
      lse = r + loss;
    } else {
      const A log_sum = row_log(part.sum + row_exp(-above));
      loss = above + log_sum;
      lse = part.max + log_sum;
    }
  }
  losses[row] = loss;
  peaks[row] = peak;
  if (lses != nullptr) lses[row] = lse;
}

}  // namespace

int row_splits(int64_t batch, int64_t samples, int multiprocessors) {
  constexpr int64_t kBlocksPerMultiprocessor = 6;
  const int64_t wanted =
      ceil_div(kBlocksPerMultiprocessor * multiprocessors, std::max<int64_t>(batch, 1));
  return static_cast<int>(
      std::clamp<int64_t>(wanted, 1, std::max<int64_t>(ceil_div(samples, kThreads), 1)));
}

template <class T>
cudaError_t score_rows(const PerRowProblem<T>& problem,
                       RowPart<typename PerRowProblem<T>::Accumulator>* parts, int splits,
                       typename PerRowProblem<T>::Accumulator* logits, cudaStream_t stream) {
  if (problem.batch == 0) return cudaSuccess;
  const bool wide = rows_are_wide(problem.weight, problem.weight_stride, problem.dim) &&
                    rows_are_wide(problem.input, problem.input_stride, problem.dim);
  const dim3 grid(static_cast<unsigned>(problem.batch), static_cast<unsigned>(splits));
  return launch(wide ? score_rows_kernel<T, true> : score_rows_kernel<T, false>, grid, kThreads, 0,
                stream, problem, parts, logits);
}

template <class T>
cudaError_t finish_rows(const PerRowProblem<T>& problem,
                        const RowPart<typename PerRowProblem<T>::Accumulator>* parts, int splits,
                        typename PerRowProblem<T>::Accumulator* loss,
                        typename PerRowProblem<T>::Accumulator* peak,
                        typename PerRowProblem<T>::Accumulator* lse, cudaStream_t stream) {
  if (problem.batch == 0) return cudaSuccess;
  return launch(finish_rows_kernel<T>,
                static_cast<unsigned>(ceil_div(problem.batch, kElementThreads)), kElementThreads, 0,
                stream, problem, parts, splits, loss, peak, lse);
}

#define SSC_PER_ROW_INSTANCE(T)                                                                    \
  template cudaError_t score_rows(const PerRowProblem<T>&,                                         \
                                  RowPart<PerRowProblem<T>::Accumulator>*, int,                    \
                                  PerRowProblem<T>::Accumulator*, cudaStream_t);                   \
  template cudaError_t finish_rows(const PerRowProblem<T>&,                                        \
                                   const RowPart<PerRowProblem<T>::Accumulator>*, int,             \
                                   PerRowProblem<T>::Accumulator*, PerRowProblem<T>::Accumulator*, \
                                   PerRowProblem<T>::Accumulator*, cudaStream_t)
SSC_FOR_TYPES(SSC_PER_ROW_INSTANCE);
#undef SSC_PER_ROW_INSTANCE

}  // namespace ssc::cuda
