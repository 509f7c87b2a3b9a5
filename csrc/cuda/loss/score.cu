// z = H Ws^T with the correction, the hit mask and the logsumexp in its epilogue.
#include "csrc/core/logit_correction.h"
#include "csrc/cuda/loss/score.h"

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

// Whether a kept hit is above its own target: their products are the same, so only log n decides.
template <class T>
__device__ __forceinline__ bool hit_beats(const LossProblem<T>& p, int64_t row, int64_t sample) {
  const float sampled = p.log_expected_count == nullptr ? 0.0f : p.log_expected_count[sample];
  const float target =
      p.target_log_expected_count == nullptr ? 0.0f : p.target_log_expected_count[row];
  return correction_of(target) > correction_of(sampled);
}

// The correction, the hit mask and, per row and warp, a running (max, sum) in shared memory.
template <class T_>
struct LossScore {
  using Tile = T_;
  using T = typename Tile::Element;
  using A = typename Tile::Accumulator;
  using Arguments = ScoreArguments<T>;

  struct Shared {
    int64_t target[Tile::kM];  // past the end, or no target: −1
    A target_logit[Tile::kM];
    int64_t id[Tile::kN];  // past the end: −2
    A adjust[Tile::kN];    // b / τ − log n; past the end −inf, ids out of range NaN
    OnlineLse<A> lse[Tile::kWarpsPerRow][Tile::kM];
    uint8_t beaten[Tile::kWarpsPerRow][Tile::kM];
  };

  __device__ __forceinline__ static void start_block(const Arguments& a, int64_t first_row,
                                                     Shared& shared) {
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

  __device__ __forceinline__ static void load_samples(const Arguments& a, int64_t /*first_row*/,
                                                      int64_t first, int64_t end, Shared& shared) {
    const LossProblem<T>& p = a.problem;
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
        if (p.log_expected_count != nullptr) adjust -= correction_of(p.log_expected_count[s]);
      }
      shared.id[j] = id;
      shared.adjust[j] = adjust;
    }
  }

  __device__ __forceinline__ static void score_tile(const Arguments& a, int64_t first_row,
                                                    int64_t first_sample, Tile& tile,
                                                    Shared& shared) {
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
      max = row_max<Tile>(max);
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

  __device__ __forceinline__ static void finish_block(const Arguments& a, int64_t first_row,
                                                      const Shared& shared) {
    if (a.parts.lse == nullptr) return;
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kM; i += kTileThreads) {
      const int64_t row = first_row + i;
      if (row >= a.problem.batch) break;
      OnlineLse<A> all = shared.lse[0][i];
      uint8_t beaten = shared.beaten[0][i];
#pragma unroll
      for (int w = 1; w < Tile::kWarpsPerRow; ++w) {
        all = merge_lse(all, shared.lse[w][i], [](A x) { return sum_exp(x); });
        beaten |= shared.beaten[w][i];
      }
      const int64_t place = static_cast<int64_t>(blockIdx.y) * a.problem.batch + row;
      a.parts.lse[place] = all;
      a.parts.beaten[place] = beaten;
    }
  }
};

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
  const ScoreArguments<T> arguments{problem, results.target_logit, parts, logits, logits_stride};
  return score_by<T, LossScore>(arguments, path, stream);
}

#define SSC_SCORE_INSTANCE(T)                                                \
  template cudaError_t score(const LossProblem<T>&,                          \
                             const RowResults<LossProblem<T>::Accumulator>&, \
                             const RowParts<LossProblem<T>::Accumulator>&,   \
                             LossProblem<T>::Accumulator*, int64_t, MatmulPath, cudaStream_t)
SSC_FOR_TYPES(SSC_SCORE_INSTANCE);
#undef SSC_SCORE_INSTANCE

}  // namespace ssc::cuda
