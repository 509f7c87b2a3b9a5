// z = H Ws^T with the correction, the hit mask and the logsumexp in its epilogue.
//
// A block owns kM rows and one split of the samples, over which it walks in tiles of kN. z stays in
// registers; per row and warp a running (max, sum) lies in shared memory. Global traffic: each
// block reads its rows once per tile of samples and each sampled row once per tile of rows, so
//   sizeof(T) D (S ceil(B / kM) + B ceil(S / kN)) bytes; beside them ids,
// counts and targets, (max, sum) of each row and split, and 4 B S bytes where logits are wanted.
// Without ids the samples are all classes in order, S = C: blocks of one split, neighbours in the
// grid, walk over the same rows of W at the same time and share them in L2.
#include "csrc/cuda/grid.h"
#include "csrc/cuda/loss.h"
#include "csrc/cuda/number.h"
#include "csrc/cuda/tile.h"
#include "csrc/cuda/tile_loop.h"
#include "csrc/cuda/tile_store.h"

namespace ssc::cuda {
namespace {

template <class T>
struct ScoreArguments {
  using A = typename LossProblem<T>::Accumulator;
  LossProblem<T> problem;
  const A* target_logit;  // null: no row has a target
  RowParts<A> parts;      // lse null: only logits are wanted
  A* logits;
  int64_t logits_stride;
};

// What the epilogue needs of the tile's rows and samples.
template <class Tile>
struct ScoreShared {
  using A = typename Tile::Accumulator;
  int64_t target[Tile::kM];  // past the end, or no target: −1
  A target_logit[Tile::kM];
  int64_t id[Tile::kN];  // past the end: −2
  A adjust[Tile::kN];    // b / τ − log n; past the end −inf, ids out of range NaN
  OnlineLse<A> lse[Tile::kWarpsPerRow][Tile::kM];
  uint8_t beaten[Tile::kWarpsPerRow][Tile::kM];
};

template <class T, class Tile>
__device__ __forceinline__ void start_block(const ScoreArguments<T>& a, int64_t first_row,
                                            ScoreShared<Tile>& shared) {
  using A = typename Tile::Accumulator;
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kM; i += kTileThreads) {
    const int64_t row = first_row + i;
    const bool inside = row < a.problem.batch && a.target_logit != nullptr;
    shared.target[i] = inside ? a.problem.target[row] : -1;
    shared.target_logit[i] = inside ? a.target_logit[row] : A(0);
#pragma unroll
    for (int w = 0; w < Tile::kWarpsPerRow; ++w) {
      shared.lse[w][i] = empty_lse<A>();
      shared.beaten[w][i] = 0;
    }
  }
}

template <class T, class Tile>
__device__ __forceinline__ void load_samples(const LossProblem<T>& p, int64_t first, int64_t end,
                                             ScoreShared<Tile>& shared) {
  using A = typename Tile::Accumulator;
  for (int j = static_cast<int>(threadIdx.x); j < Tile::kN; j += kTileThreads) {
    const int64_t s = first + j;
    if (s >= end) {
      shared.id[j] = -2;
      shared.adjust[j] = -static_cast<A>(__builtin_inf());
      continue;
    }
    const int64_t id = p.ids == nullptr ? s : p.ids[s];
    A adjust = static_cast<A>(__builtin_nan(""));
    if (static_cast<uint64_t>(id) < static_cast<uint64_t>(p.classes)) {
      adjust = p.bias == nullptr ? A(0) : to_accumulator(p.bias[id]) * p.inv_temperature;
      if (p.log_expected_count != nullptr) adjust -= p.log_expected_count[s];
    }
    shared.id[j] = id;
    shared.adjust[j] = adjust;
  }
}

// Whether a kept hit is above its own target: their products are the same, so only log n decides.
template <class T>
__device__ __forceinline__ bool hit_beats(const LossProblem<T>& p, int64_t row, int64_t sample) {
  const float sampled = p.log_expected_count == nullptr ? 0.0f : p.log_expected_count[sample];
  const float target =
      p.target_log_expected_count == nullptr ? 0.0f : p.target_log_expected_count[row];
  return target > sampled;
}

// z of the tile from its products, in place, and the rows' running sums.
template <class T, class Tile>
__device__ __forceinline__ void score_tile(const ScoreArguments<T>& a, int64_t first_row,
                                           int64_t first_sample, Tile& tile,
                                           ScoreShared<Tile>& shared) {
  using A = typename Tile::Accumulator;
  const LossProblem<T>& p = a.problem;
  const auto exponential = [](A x) { return sum_exp(x); };
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    const int row = Tile::row(i);
    const int64_t target = shared.target[row];
    const A target_logit = shared.target_logit[row];
    A max = -static_cast<A>(__builtin_inf());
    bool beaten = false;
#pragma unroll
    for (int j = 0; j < Tile::kColumns; ++j) {
      const int column = Tile::column(j);
      A& z = tile.at(i, j);
      z = z * p.inv_temperature + shared.adjust[column];
      if (shared.id[column] != target) {
        beaten |= z > target_logit;
      } else if (p.remove_accidental_hits) {
        z = -static_cast<A>(__builtin_inf());
      } else {
        beaten |= hit_beats(p, first_row + row, first_sample + column);
      }
      max = z > max ? z : max;
    }
    if (a.parts.lse == nullptr) continue;
#pragma unroll
    for (int offset = Tile::kLanesPerRow / 2; offset > 0; offset /= 2) {
      const A other = __shfl_xor_sync(~0u, max, offset);
      max = other > max ? other : max;
    }
    const A reference = lse_reference(max);
    A sum = 0;
#pragma unroll
    for (int j = 0; j < Tile::kColumns; ++j) sum += exponential(tile.at(i, j) - reference);
    int any = beaten;
#pragma unroll
    for (int offset = Tile::kLanesPerRow / 2; offset > 0; offset /= 2) {
      sum += __shfl_xor_sync(~0u, sum, offset);
      any |= __shfl_xor_sync(~0u, any, offset);
    }
    if (threadIdx.x % Tile::kLanesPerRow == 0) {
      OnlineLse<A>& running = shared.lse[Tile::warp_in_row()][row];
      running = merge_lse(running, {max, sum}, exponential);
      if (any != 0) shared.beaten[Tile::warp_in_row()][row] = 1;
    }
  }
}

template <class Tile, int kAlign>
__global__ void __launch_bounds__(kTileThreads, 1)
    score_kernel(const __grid_constant__ ScoreArguments<typename Tile::Element> a) {
  if constexpr (!runs_here<Tile>()) {
    __trap();
    return;
  }
  using T = typename Tile::Element;
  using A = typename Tile::Accumulator;
  T* const stages = dynamic_shared<T>();
  __shared__ ScoreShared<Tile> shared;
  const LossProblem<T>& p = a.problem;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * Tile::kM;
  // Split y takes whole tiles of samples.
  const int64_t tiles = (p.samples + Tile::kN - 1) / Tile::kN;
  const int64_t begin = tiles * blockIdx.y / gridDim.y * Tile::kN;
  const int64_t last = tiles * (blockIdx.y + 1) / gridDim.y * Tile::kN;
  const int64_t end = last < p.samples ? last : p.samples;

  const RowSource<T, Rows::all> input = {p.input, p.input_stride, p.batch, p.dim};
  const RowSource<T, Rows::chosen> weight = {p.weight, p.weight_stride, end,
                                             p.dim,    p.ids,           p.classes};
  OperandCopy<T, Rows::all, Tile::kA, Tile::kM, kAlign> copy_a(input, first_row);
  start_block(a, first_row, shared);
  for (int64_t sample = begin; sample < end; sample += Tile::kN) {
    load_samples(p, sample, end, shared);
    OperandCopy<T, Rows::chosen, Tile::kB, Tile::kN, kAlign> copy_b(weight, sample);
    Tile tile;
    tile.clear();
    multiply_tile(tile, copy_a, copy_b, 0, tile_steps<Tile>(p.dim), stages);  // publishes `shared`
    score_tile(a, first_row, sample, tile, shared);
    if (a.logits != nullptr) {
      store_tile(tile, a.logits + first_row * a.logits_stride + sample, a.logits_stride,
                 p.batch - first_row, end - sample, false);
    }
    __syncthreads();
  }
  if (a.parts.lse == nullptr) return;
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kM; i += kTileThreads) {
    const int64_t row = first_row + i;
    if (row >= p.batch) break;
    OnlineLse<A> all = shared.lse[0][i];
    uint8_t beaten = shared.beaten[0][i];
#pragma unroll
    for (int w = 1; w < Tile::kWarpsPerRow; ++w) {
      all = merge_lse(all, shared.lse[w][i], [](A x) { return sum_exp(x); });
      beaten |= shared.beaten[w][i];
    }
    const int64_t place = static_cast<int64_t>(blockIdx.y) * p.batch + row;
    a.parts.lse[place] = all;
    a.parts.beaten[place] = beaten;
  }
}

template <class Tile, int kAlign>
cudaError_t launch_score(const ScoreArguments<typename Tile::Element>& arguments,
                         cudaStream_t stream) {
  constexpr int kBytes = kPipelineBytes<Tile>;
  constexpr auto kernel = score_kernel<Tile, kAlign>;
  constexpr int kStatic = sizeof(ScoreShared<Tile>);
  const cudaError_t error = allow_shared(kernel, kBytes, kStatic);
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>(ceil_div(arguments.problem.batch, Tile::kM)),
                  static_cast<unsigned>(arguments.parts.splits));
  return launch(kernel, grid, kTileThreads, kBytes, stream, arguments);
}

template <class Tile>
cudaError_t score_by(const ScoreArguments<typename Tile::Element>& arguments, cudaStream_t stream) {
  const LossProblem<typename Tile::Element>& p = arguments.problem;
  return with_alignment(p.input, p.input_stride, p.weight, p.weight_stride, [&](auto align) {
    return launch_score<Tile, decltype(align)::value>(arguments, stream);
  });
}

}  // namespace

constexpr int64_t kSplitTile = 128;

int score_splits(int64_t batch, int64_t samples, int multiprocessors) {
  const int64_t row_tiles = ceil_div(batch, kSplitTile),
                sample_tiles = ceil_div(samples, kSplitTile);
  const int64_t wanted = ceil_div(2 * multiprocessors, row_tiles > 0 ? row_tiles : 1);
  const int64_t splits = wanted < sample_tiles ? wanted : sample_tiles;
  return static_cast<int>(splits > 0 ? splits : 1);
}

// Less than 2 multiprocessors / tiles + 1 splits of at most kSplitTile · tiles rows.
int64_t most_score_parts(int64_t batch, int multiprocessors) {
  return 2 * multiprocessors * kSplitTile + batch;
}

template <class T>
cudaError_t score(const LossProblem<T>& problem,
                  const RowResults<typename LossProblem<T>::Accumulator>& results,
                  const RowParts<typename LossProblem<T>::Accumulator>& parts,
                  typename LossProblem<T>::Accumulator* logits, int64_t logits_stride,
                  MatmulPath path, cudaStream_t stream) {
  constexpr Order k = Order::along_k;
  if (problem.batch == 0) return cudaSuccess;
  const ScoreArguments<T> arguments{problem, results.target_logit, parts, logits, logits_stride};
  return with_tile<T, k, k>(
      path, [&](auto tile) { return score_by<typename decltype(tile)::type>(arguments, stream); });
}

#define SSC_SCORE_INSTANCE(T)                                                \
  template cudaError_t score(const LossProblem<T>&,                          \
                             const RowResults<LossProblem<T>::Accumulator>&, \
                             const RowParts<LossProblem<T>::Accumulator>&,   \
                             LossProblem<T>::Accumulator*, int64_t, MatmulPath, cudaStream_t)
SSC_SCORE_INSTANCE(float);
SSC_SCORE_INSTANCE(double);
SSC_SCORE_INSTANCE(__nv_bfloat16);
SSC_SCORE_INSTANCE(__half);
#undef SSC_SCORE_INSTANCE

}  // namespace ssc::cuda
