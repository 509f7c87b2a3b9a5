// z = H Ws^T with the correction, the hits and the logsumexp in its epilogue.
#include "csrc/core/logit_correction.h"
#include "csrc/cuda/loss/score.h"
#include "csrc/cuda/loss/target_hits.h"

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

// The correction, the hits and, per thread and row, a running (max, sum).
template <class T_>
struct LossScore {
  using Tile = T_;
  using T = typename Tile::Element;
  using A = typename Tile::Accumulator;
  using Arguments = ScoreArguments<T>;
  using Running = RunningLse<Tile>;
  static constexpr int kResidentBlocks = sizeof(A) == 8 ? 2 : 1;

  struct Shared {
    TargetHits<Tile> hits;
    A target_logit[Tile::kM];
    A adjust[Tile::kN];  // b / τ − log n; past the end −inf, ids out of range NaN
    OnlineLse<A> lse[Tile::kWarpsPerRow][Tile::kM];
    uint8_t beaten[Tile::kWarpsPerRow][Tile::kM];  // of kept hits and their rows
  };

  __device__ __forceinline__ static void start_block(const Arguments& a, int64_t first_row,
                                                     Shared& shared) {
    const LossProblem<T>& p = a.problem;
    const bool targets = a.target_logit != nullptr;
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kM; i += kTileThreads) {
      const int64_t row = first_row + i;
      shared.target_logit[i] = targets && row < p.batch ? a.target_logit[row] : A(0);
#pragma unroll
      for (int w = 0; w < Tile::kWarpsPerRow; ++w) shared.beaten[w][i] = 0;
    }
    shared.hits.start(targets ? p.target : nullptr, first_row, p.batch, p.classes);
  }

  __device__ __forceinline__ static void load_samples(const Arguments& a, int64_t /*first_row*/,
                                                      int64_t first, int64_t end, Shared& shared) {
    const LossProblem<T>& p = a.problem;
    const int tile = tile_number(first);
    shared.hits.clear_other(tile);
    const int j = static_cast<int>(threadIdx.x);
    if (j >= Tile::kN) return;
    const int64_t s = first + j;
    A adjust = -static_cast<A>(__builtin_inf());
    if (s < end) {
      const int64_t id = p.ids == nullptr ? s : p.ids[s];
      if (static_cast<uint64_t>(id) < static_cast<uint64_t>(p.classes)) {
        shared.hits.look_up(tile, j, id);
        adjust = p.bias == nullptr ? A(0) : to_accumulator(p.bias[id]) * p.inv_temperature;
        if (p.log_expected_count != nullptr) adjust -= correction_of(p.log_expected_count[s]);
      } else {
        adjust = static_cast<A>(__builtin_nan(""));
      }
    }
    shared.adjust[j] = adjust;
  }

  __device__ __forceinline__ static void score_tile(const Arguments& a, int64_t first_row,
                                                    int64_t first_sample, Tile& tile,
                                                    Running& running, Shared& shared) {
    const LossProblem<T>& p = a.problem;
    const RowBits<Tile>& hits = shared.hits.of_tile(tile_number(first_sample));
    A adjust[Tile::kColumns];
#pragma unroll
    for (int j = 0; j < Tile::kColumns; ++j) adjust[j] = shared.adjust[Tile::column(j)];
#pragma unroll
    for (int i = 0; i < Tile::kRows; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kColumns; ++j) {
        tile.at(i, j) = tile.at(i, j) * p.inv_temperature + adjust[j];
      }
    }
    if (p.remove_accidental_hits) {
      remove_hits(hits, tile);
    } else if (a.parts.lse != nullptr) {
      compare(p, hits, first_row, first_sample, tile, shared);
    }
    if (a.parts.lse == nullptr) return;
#pragma unroll
    for (int i = 0; i < Tile::kRows; ++i) running.add(tile, i);
  }

  // Where hits are removed, a row is above its target if its largest logit is.
  __device__ __forceinline__ static void finish_block(const Arguments& a, int64_t first_row,
                                                      const Running& running, Shared& shared) {
    if (a.parts.lse == nullptr) return;
    publish_lse<Tile>([&](int i) { return running.over_lanes(i); }, shared.lse);
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
      if (a.problem.remove_accidental_hits) beaten = all.max > shared.target_logit[i];
      const int64_t place = static_cast<int64_t>(blockIdx.y) * a.problem.batch + row;
      a.parts.lse[place] = all;
      a.parts.beaten[place] = beaten;
    }
  }

 private:
  __device__ __forceinline__ static int tile_number(int64_t first) {
    return static_cast<int>(first / Tile::kN);
  }

  // Which rows are above their targets where hits are kept.
  __device__ __forceinline__ static void compare(const LossProblem<T>& p, const RowBits<Tile>& hits,
                                                 int64_t first_row, int64_t first_sample,
                                                 Tile& tile, Shared& shared) {
#pragma unroll
    for (int i = 0; i < Tile::kRows; ++i) {
      const int row = Tile::row(i);
      const A target_logit = shared.target_logit[row];
      bool beaten = false;
      if (!hits.any(row)) {
#pragma unroll
        for (int j = 0; j < Tile::kColumns; ++j) beaten |= tile.at(i, j) > target_logit;
      } else {
#pragma unroll
        for (int j = 0; j < Tile::kColumns; ++j) {
          const int column = Tile::column(j);
          beaten |= hits.at(row, column) ? hit_beats(p, first_row + row, first_sample + column)
                                         : tile.at(i, j) > target_logit;
        }
      }
      int any = beaten;
#pragma unroll
      for (int offset = Tile::kLanesPerRow / 2; offset > 0; offset /= 2) {
        any |= __shfl_xor_sync(~0u, any, offset);
      }
      if (any != 0 && threadIdx.x % Tile::kLanesPerRow == 0) {
        shared.beaten[Tile::warp_in_row()][row] = 1;
      }
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
