// The stages of general negatives that are no matmuls: bits of hits, losses, probabilities.
#include "csrc/core/logit_correction.h"
#include "csrc/cuda/device/grid.h"
#include "csrc/cuda/device/number.h"
#include "csrc/cuda/loss/probability.h"
#include "csrc/cuda/loss/row_loss.h"
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

using Word = unsigned long long;

constexpr Word kNone = ~Word{0};  // −1
constexpr int kRowsPerBlock = 4, kSlots = 512;
constexpr int64_t kPerRound = kSlots / 2;  // at most half full

// Multiplicative hashing, Knuth, The Art of Computer Programming 3, 6.4.
__device__ __forceinline__ unsigned first_slot(Word id) {
  return static_cast<unsigned>(id * 0x9e3779b97f4a7c15ull >> 32) % kSlots;
}

struct HitArguments {
  const int64_t* hits;  // [B][per_row]
  int64_t batch, per_row;
  const int64_t* ids;  // [S]
  int64_t samples;
  uint32_t* bits;
};

// Every row has a hash table of its classes, in which every sample is looked up: B S steps, however
// many classes a row leaves out. More than half a table come in several rounds. A word of bits is
// what a warp votes. A block reads the ids once for its rows: 8 S ceil(B / kRowsPerBlock) bytes.
__global__ void __launch_bounds__(kElementThreads)
    find_hits_kernel(const __grid_constant__ HitArguments a) {
  __shared__ Word tables[kRowsPerBlock][kSlots];
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock;
  const int64_t left = a.batch - first_row;
  const int rows = left < kRowsPerBlock ? static_cast<int>(left) : kRowsPerBlock;
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t first = 0; first == 0 || first < a.per_row; first += kPerRound) {
    const int64_t last = first + kPerRound < a.per_row ? first + kPerRound : a.per_row;
    for (int i = thread; i < kRowsPerBlock * kSlots; i += kElementThreads) {
      tables[i / kSlots][i % kSlots] = kNone;
    }
    __syncthreads();
    for (int r = 0; r < rows; ++r) {
      for (int64_t k = first + thread; k < last; k += kElementThreads) {
        const int64_t id = a.hits[(first_row + r) * a.per_row + k];
        if (id < 0) continue;
        const auto entry = static_cast<Word>(id);
        for (unsigned slot = first_slot(entry);; slot = (slot + 1) % kSlots) {
          const Word there = atomicCAS(&tables[r][slot], kNone, entry);
          if (there == kNone || there == entry) break;
        }
      }
    }
    __syncthreads();
    for (int64_t s = thread; s < bit_words(a.samples) * 32; s += kElementThreads) {  // whole warps
      const Word id = s < a.samples ? static_cast<Word>(a.ids[s]) : kNone;
      for (int r = 0; r < rows; ++r) {
        const Word* const table = tables[r];
        unsigned slot = first_slot(id);
        while (table[slot] != kNone && table[slot] != id) slot = (slot + 1) % kSlots;
        const unsigned word = __ballot_sync(~0u, id != kNone && table[slot] == id ? 1 : 0);
        if (thread % 32 != 0) continue;
        uint32_t& out = a.bits[bit_word(first_row + r, a.batch, s)];
        out = first == 0 ? word : out | word;
      }
    }
    __syncthreads();
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
  const int64_t row = blockIdx.x;
  const bool counts = p.target[row] != p.ignore_index;
  const A k = counts ? c.row_scale[row] / *c.kappa * p.inv_temperature : A(0);
  const A lse = c.lse[row];
  for (int64_t s = static_cast<int64_t>(blockIdx.y) * kElementThreads + threadIdx.x; s < c.stride;
       s += static_cast<int64_t>(gridDim.y) * kElementThreads) {
    const A z = s < p.samples ? c.logits[row * c.stride + s] : -static_cast<A>(__builtin_inf());
    A e = 0;
    if (counts && z != -static_cast<A>(__builtin_inf())) {  // left out; NaN is not
      if (a.sigmoid) {
        const A small = sum_exp(z > A(0) ? -z : z);
        e = k * (z > A(0) ? A(1) : small) / (A(1) + small);
      } else {
        e = k * sum_exp(z - lse);
      }
      if (a.softcap > A(0)) {  // d cap(x) / d x = 1 − tanh², tanh being (z + log n) / softcap
        const A log_count =
            p.log_expected_count == nullptr ? A(0) : A(correction_of(p.log_expected_count[s]));
        const A tanh = (z + log_count) / a.softcap;
        e *= (A(1) - tanh) * (A(1) + tanh);
      }
    }
    c.probabilities[row * c.stride + s] = to_probability(c, e);
  }
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
  if (p.batch == 0) return cudaSuccess;
  const HitArguments arguments{problem.hits, p.batch, problem.hits_per_row, p.ids, p.samples, bits};
  return launch(find_hits_kernel, static_cast<unsigned>(ceil_div(p.batch, kRowsPerBlock)),
                kElementThreads, 0, stream, arguments);
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
  const dim3 grid(static_cast<unsigned>(chunk.problem.batch), row_blocks(chunk.problem.samples));
  const ProbabilityArguments<T> arguments{chunk, problem.softcap, problem.sigmoid};
  return launch(negative_probabilities_kernel<T>, grid, kElementThreads, 0, stream, arguments);
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
