// z of general negatives, as `score`: its epilogue caps logits, knows hits by their bits, and sums
// exp or softplus. Beside score.h's traffic, B S / 8 bytes of bits.
#include "csrc/core/logit_correction.h"
#include "csrc/cuda/loss/row_bits.h"
#include "csrc/cuda/loss/score.h"
#include "csrc/cuda/negatives/negatives.h"

namespace ssc::cuda {
namespace {

template <class T>
struct NegativeArguments {
  using A = typename AccumulatorOf<T>::Type;
  LossProblem<T> problem;
  NegativeParts<A> parts;
  A* logits;  // null: not wanted
  int64_t logits_stride;
  const uint32_t* bits;  // of find_hits
  A softcap;
  bool sigmoid;
};

template <class T_>
struct NegativeScore {
  using Tile = T_;
  using T = typename Tile::Element;
  using A = typename Tile::Accumulator;
  using Arguments = NegativeArguments<T>;
  static constexpr int kResidentBlocks = 1;
  static constexpr int kWords = RowBits<Tile>::kWords;

  // A thread's sums of each of its rows; for sigmoid, `lse` has those of softplus(z) alone.
  struct Running {
    RunningLse<Tile> lse;
    A peak[Tile::kRows];

    __device__ __forceinline__ void clear() {
      lse.clear();
#pragma unroll
      for (A& p : peak) p = empty_lse<A>().max;
    }
  };

  struct Shared {
    A bias[Tile::kN];       // b / τ; ids out of range NaN
    A log_count[Tile::kN];  // past the end +inf
    RowBits<Tile> hits;
    OnlineLse<A> lse[Tile::kWarpsPerRow][Tile::kM];
    A peak[Tile::kWarpsPerRow][Tile::kM];
  };

  __device__ __forceinline__ static void start_block(const Arguments& /*a*/, int64_t /*first_row*/,
                                                     Shared& /*shared*/) {}

  __device__ __forceinline__ static void load_samples(const Arguments& a, int64_t first_row,
                                                      int64_t first, int64_t end, Shared& shared) {
    const LossProblem<T>& p = a.problem;
    // Half of the threads have a sample each, the others a row's bits.
    static_assert(Tile::kN + Tile::kM <= kTileThreads);
    const int j = static_cast<int>(threadIdx.x), i = j - (kTileThreads - Tile::kM);
    if (j < Tile::kN) {
      const int64_t s = first + j;
      A bias = 0, log_count = static_cast<A>(__builtin_inf());
      if (s < end) {
        const int64_t id = p.ids[s];
        if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(p.classes)) {
          bias = static_cast<A>(__builtin_nan(""));
        } else if (p.bias != nullptr) {
          bias = to_accumulator(p.bias[id]) * p.inv_temperature;
        }
        log_count =
            p.log_expected_count == nullptr ? A(0) : A(correction_of(p.log_expected_count[s]));
      }
      shared.bias[j] = bias;
      shared.log_count[j] = log_count;
    } else if (i >= 0) {
      using Words = Elements<uint32_t, kWords>;
      const int64_t row = first_row + i;
      *reinterpret_cast<Words*>(shared.hits.word[i]) =
          row < p.batch ? load_vector<Words>(a.bits + bit_word(row, p.batch, first)) : Words{};
    }
  }

  __device__ __forceinline__ static void score_tile(const Arguments& a, int64_t /*first_row*/,
                                                    int64_t /*first_sample*/, Tile& tile,
                                                    Running& running, Shared& shared) {
    correct(a, tile, shared);
    // A hit that is removed is no peak either, so that the largest logit is.
    const bool remove = a.problem.remove_accidental_hits;
    if (remove) remove_hits(shared.hits, tile);
    if (!remove || a.sigmoid) add_peaks(shared.hits, tile, running);
#pragma unroll
    for (int i = 0; i < Tile::kRows; ++i) {
      if (a.sigmoid) {
        running.lse.sum[i] += softplus_sum(tile, i);
      } else {
        running.lse.add(tile, i);
      }
    }
  }

  __device__ __forceinline__ static void finish_block(const Arguments& a, int64_t first_row,
                                                      const Running& running, Shared& shared) {
    const bool peak_is_max = a.problem.remove_accidental_hits && !a.sigmoid;
#pragma unroll
    for (int i = 0; i < Tile::kRows; ++i) {
      const A peak = row_max<Tile>(running.peak[i]);
      if (threadIdx.x % Tile::kLanesPerRow == 0) {
        shared.peak[Tile::warp_in_row()][Tile::row(i)] = peak;
      }
    }
    const auto of_row = [&](int i) {
      return a.sigmoid ? OnlineLse<A>{A(0), row_sum<Tile>(running.lse.sum[i])}
                       : running.lse.over_lanes(i);
    };
    publish_lse<Tile>(of_row, shared.lse);
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kM; i += kTileThreads) {
      const int64_t row = first_row + i;
      if (row >= a.problem.batch) break;
      OnlineLse<A> all = shared.lse[0][i];
      A peak = shared.peak[0][i];
#pragma unroll
      for (int w = 1; w < Tile::kWarpsPerRow; ++w) {
        const OnlineLse<A> other = shared.lse[w][i];
        all = a.sigmoid ? OnlineLse<A>{A(0), all.sum + other.sum}
                        : merge_lse(all, other, [](A x) { return sum_exp(x); });
        peak = larger(peak, shared.peak[w][i]);
      }
      const int64_t place = static_cast<int64_t>(blockIdx.y) * a.problem.batch + row;
      a.parts.lse[place] = all;
      a.parts.peak[place] = peak_is_max ? all.max : peak;
    }
  }

 private:
  // Logits from products, in place.
  __device__ __forceinline__ static void correct(const Arguments& a, Tile& tile,
                                                 const Shared& shared) {
    const A infinity = static_cast<A>(__builtin_inf()), inv_temperature = a.problem.inv_temperature;
    A bias[Tile::kColumns], log_count[Tile::kColumns];
    bool left_out = false;
#pragma unroll
    for (int j = 0; j < Tile::kColumns; ++j) {
      bias[j] = shared.bias[Tile::column(j)];
      log_count[j] = shared.log_count[Tile::column(j)];
      left_out |= log_count[j] == infinity;
    }
    if (a.softcap > A(0)) {
      const A inverse = A(1) / a.softcap;
#pragma unroll
      for (int i = 0; i < Tile::kRows; ++i) {
#pragma unroll
        for (int j = 0; j < Tile::kColumns; ++j) {
          A& z = tile.at(i, j);
          const A x = z * inv_temperature + bias[j];
          z = a.softcap * logit_tanh(x * inverse) - log_count[j];
        }
      }
    } else {
#pragma unroll
      for (int j = 0; j < Tile::kColumns; ++j) {
        const A adjust = bias[j] - log_count[j];
#pragma unroll
        for (int i = 0; i < Tile::kRows; ++i) {
          tile.at(i, j) = tile.at(i, j) * inv_temperature + adjust;
        }
      }
    }
    if (!left_out) return;
    // Samples that are left out or past the end stay out, whatever their products are.
#pragma unroll
    for (int j = 0; j < Tile::kColumns; ++j) {
#pragma unroll
      for (int i = 0; i < Tile::kRows; ++i) {
        if (log_count[j] == infinity) tile.at(i, j) = -infinity;
      }
    }
  }

  __device__ __forceinline__ static void add_peaks(const RowBits<Tile>& hits, Tile& tile,
                                                   Running& running) {
#pragma unroll
    for (int i = 0; i < Tile::kRows; ++i) {
      const int row = Tile::row(i);
      const bool any = hits.any(row);
#pragma unroll
      for (int j = 0; j < Tile::kColumns; ++j) {
        if (!any || !hits.at(row, Tile::column(j))) {
          running.peak[i] = larger(running.peak[i], tile.at(i, j));
        }
      }
    }
  }

  // Σ softplus(z) of a thread's part of a row: Σ max(z, 0) + log Π (1 + e^−|z|), the product less 1
  // so that small terms keep their digits. Of up to 32 columns it is below 2^32.
  __device__ __forceinline__ static A softplus_sum(Tile& tile, int i) {
    static_assert(Tile::kColumns <= 32);
    A positive = 0, product = 0;
#pragma unroll
    for (int j = 0; j < Tile::kColumns; ++j) {
      const A z = tile.at(i, j);
      const A e = sum_exp(z > A(0) ? -z : z);
      positive += z > A(0) ? z : A(0);
      product += e + product * e;
    }
    return positive + row_log1p(product);
  }
};

}  // namespace

template <class T>
cudaError_t score_negatives(const NegativesProblem<T>& problem, const uint32_t* bits,
                            const NegativeParts<typename AccumulatorOf<T>::Type>& parts,
                            typename AccumulatorOf<T>::Type* logits, int64_t logits_stride,
                            MatmulPath path, cudaStream_t stream) {
  const NegativeArguments<T> arguments{problem.problem, parts,          logits, logits_stride, bits,
                                       problem.softcap, problem.sigmoid};
  return score_by<T, NegativeScore>(arguments, path, stream);
}

#define SSC_SCORE_NEGATIVES_INSTANCE(T)                                              \
  template cudaError_t score_negatives(const NegativesProblem<T>&, const uint32_t*,  \
                                       const NegativeParts<AccumulatorOf<T>::Type>&, \
                                       AccumulatorOf<T>::Type*, int64_t, MatmulPath, cudaStream_t)
SSC_FOR_TYPES(SSC_SCORE_NEGATIVES_INSTANCE);
#undef SSC_SCORE_NEGATIVES_INSTANCE

}  // namespace ssc::cuda
