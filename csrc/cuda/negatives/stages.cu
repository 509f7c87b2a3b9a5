// The stages of general negatives that are no matmuls: bits of hits, losses, probabilities.
#include "csrc/core/logit_correction.h"
#include "csrc/cuda/device/grid.h"
#include "csrc/cuda/device/vector_access.h"
#include "csrc/cuda/loss/class_table.h"
#include "csrc/cuda/loss/row_loss.h"
#include "csrc/cuda/loss/row_probabilities.h"
#include "csrc/cuda/negatives/negatives.h"

namespace ssc::cuda {
namespace {

__global__ void __launch_bounds__(kElementThreads)
    label_rows_kernel(const bool* counted, int64_t batch, int64_t* labels) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < batch;
       i += stride) {
    labels[i] = counted == nullptr || counted[i] ? kRowCounts : kRowIgnored;
  }
}

struct HitArguments {
  const int64_t* hits;  // [B][per_row]
  int64_t batch, per_row;
  const int64_t* ids;  // [S]
  int64_t samples;
  uint32_t* bits;
};

constexpr int kHitRows = 32, kHitSamples = 512, kHitEntries = 512, kHitTiles = kHitSamples / 128;

// A block has the bits of its rows and samples in shared memory. The rows' classes are entries of
// one hash table, in which each sample is looked up: B S / kHitRows steps, and one more for each
// hit. More entries than the table takes come in several rounds. Global traffic: the ids once per
// block of rows, the hits once per block of samples, and the bits.
__global__ void __launch_bounds__(kElementThreads)
    find_hits_kernel(const __grid_constant__ HitArguments a) {
  __shared__ ClassTable<kHitEntries, 2 * kHitEntries> table;
  __shared__ __align__(16) uint32_t bits[kHitTiles][kHitRows][4];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kHitRows;
  const int64_t first_sample = static_cast<int64_t>(blockIdx.y) * kHitSamples;
  const int64_t left = a.batch - first_row;
  const int64_t entries = (left < kHitRows ? left : kHitRows) * a.per_row;
  const int64_t* const hits = a.hits + first_row * a.per_row;
  for (int i = thread; i < kHitTiles * kHitRows * 4; i += kElementThreads) {
    bits[i / (kHitRows * 4)][i / 4 % kHitRows][i % 4] = 0;
  }
  for (int64_t first = 0; first < entries; first += kHitEntries) {
    table.fill<kElementThreads>(
        [&](int i) { return first + i < entries ? hits[first + i] : int64_t{-1}; });
    for (int i = thread; i < kHitSamples; i += kElementThreads) {
      const int64_t s = first_sample + i;
      if (s >= a.samples) break;
      table.look_up(a.ids[s], [&](int entry) {
        const auto row = static_cast<unsigned>(first + entry) / static_cast<unsigned>(a.per_row);
        atomicOr(&bits[i / 128][row][i / 32 % 4], 1u << i % 32);
      });
    }
    __syncthreads();
  }
  __syncthreads();
  const int64_t tiles = bit_words(a.samples) / 4;
  for (int i = thread; i < kHitTiles * kHitRows; i += kElementThreads) {
    const int64_t row = first_row + i % kHitRows, tile = first_sample / 128 + i / kHitRows;
    if (row >= a.batch || tile >= tiles) continue;
    store_vector(a.bits + bit_word(row, a.batch, tile * 128),
                 load_vector<uint4>(bits[i / kHitRows][i % kHitRows]));
  }
}

template <class T>
__global__ void __launch_bounds__(kElementThreads) finish_negatives_kernel(
    const __grid_constant__ NegativesProblem<T> n,
    const __grid_constant__ NegativeParts<typename NegativesProblem<T>::A> parts,
    const __grid_constant__ NegativeResults<typename NegativesProblem<T>::A> out) {
  using A = typename NegativesProblem<T>::A;
  const LossProblem<T>& p = n.problem;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= p.batch) return;
  if (p.target[row] == p.ignore_index) {
    out.loss[row] = out.peak[row] = 0;
    if (out.lse != nullptr) out.lse[row] = 0;
    return;
  }
  OnlineLse<A> all = empty_lse<A>();
  A peak = all.max;
  for (int split = 0; split < parts.splits; ++split) {
    const int64_t place = split * p.batch + row;
    const OnlineLse<A> part = parts.lse[place];
    all = n.sigmoid ? OnlineLse<A>{A(0), all.sum + part.sum}
                    : merge_lse(all, part, [](A x) { return row_exp(x); });
    peak = parts.peak[place] > peak ? parts.peak[place] : peak;
  }
  const RowLoss<A> merged =
      n.sigmoid ? RowLoss<A>{all.sum, A(0)} : row_loss(all, n.target_logit[row]);
  out.loss[row] = merged.loss;
  out.peak[row] = peak;
  if (out.lse != nullptr) out.lse[row] = merged.lse;
}

template <class T>
struct ProbabilityArguments {
  GradChunk<T> chunk;
  typename GradChunk<T>::A softcap;
  bool sigmoid;
};

template <class T>
__global__ void __launch_bounds__(kElementThreads)
    negative_probabilities_kernel(const __grid_constant__ ProbabilityArguments<T> a) {
  using A = typename GradChunk<T>::A;
  const GradChunk<T>& c = a.chunk;
  const LossProblem<T>& p = c.problem;
  const RowPlace place = row_place();
  if (place.row >= p.batch) return;
  const bool counts = p.target[place.row] != p.ignore_index;
  const A k = counts ? c.row_scale[place.row] * p.inv_temperature / *c.kappa : A(0);
  const A lse = c.lse[place.row];
  write_probabilities(c, place, counts, [&](A z, int64_t s) {
    if (z == -static_cast<A>(__builtin_inf())) return A(0);  // left out; NaN is not
    A e;
    if (a.sigmoid) {
      const A small = sum_exp(z > A(0) ? -z : z);
      e = k * (z > A(0) ? A(1) : small) / (A(1) + small);
    } else {
      e = k * sum_exp(z - lse);
    }
    if (a.softcap > A(0)) {  // d cap(x) / d x = 1 − tanh², tanh being (z + log n) / softcap
      const bool corrected = p.log_expected_count != nullptr && s < p.samples;
      const A log_count = corrected ? A(correction_of(p.log_expected_count[s])) : A(0);
      const A tanh = (z + log_count) / a.softcap;
      e *= (A(1) - tanh) * (A(1) + tanh);
    }
    return e;
  });
}

}  // namespace

cudaError_t label_rows(const bool* counted, int64_t batch, int64_t* labels, cudaStream_t stream) {
  if (batch == 0) return cudaSuccess;
  return launch(label_rows_kernel, element_blocks(batch), kElementThreads, 0, stream, counted,
                batch, labels);
}

template <class T>
cudaError_t find_hits(const NegativesProblem<T>& problem, uint32_t* bits, cudaStream_t stream) {
  const LossProblem<T>& p = problem.problem;
  if (p.batch == 0 || p.samples == 0) return cudaSuccess;
  const HitArguments arguments{problem.hits, p.batch, problem.hits_per_row, p.ids, p.samples, bits};
  const dim3 grid(static_cast<unsigned>(ceil_div(p.batch, kHitRows)),
                  static_cast<unsigned>(ceil_div(p.samples, kHitSamples)));
  return launch(find_hits_kernel, grid, kElementThreads, 0, stream, arguments);
}

template <class T>
cudaError_t finish_negatives(const NegativesProblem<T>& problem,
                             const NegativeParts<typename AccumulatorOf<T>::Type>& parts,
                             const NegativeResults<typename AccumulatorOf<T>::Type>& results,
                             cudaStream_t stream) {
  const int64_t batch = problem.problem.batch;
  if (batch == 0) return cudaSuccess;
  return launch(finish_negatives_kernel<T>, static_cast<unsigned>(ceil_div(batch, kElementThreads)),
                kElementThreads, 0, stream, problem, parts, results);
}

template <class T>
cudaError_t negative_probabilities(const NegativesProblem<T>& problem, const GradChunk<T>& chunk,
                                   cudaStream_t stream) {
  if (chunk.problem.batch == 0) return cudaSuccess;
  const RowGrid grid = row_grid(chunk.problem.batch, chunk.stride);
  const ProbabilityArguments<T> arguments{chunk, problem.softcap, problem.sigmoid};
  return launch(negative_probabilities_kernel<T>, grid.blocks, grid.threads, 0, stream, arguments);
}

#define SSC_NEGATIVES_INSTANCE(T)                                                              \
  template cudaError_t find_hits(const NegativesProblem<T>&, uint32_t*, cudaStream_t);         \
  template cudaError_t finish_negatives(                                                       \
      const NegativesProblem<T>&, const NegativeParts<AccumulatorOf<T>::Type>&,                \
      const NegativeResults<AccumulatorOf<T>::Type>&, cudaStream_t);                           \
  template cudaError_t negative_probabilities(const NegativesProblem<T>&, const GradChunk<T>&, \
                                              cudaStream_t)
SSC_FOR_TYPES(SSC_NEGATIVES_INSTANCE);
#undef SSC_NEGATIVES_INSTANCE

}  // namespace ssc::cuda
