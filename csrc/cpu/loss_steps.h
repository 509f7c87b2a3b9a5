// Steps that the forward-only pass and the pass with gradients share.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "csrc/cpu/loss.h"
#include "csrc/cpu/loss_leaf.h"

namespace ssc {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline double element(const Vector& v, int64_t i) {
  if (v.data == nullptr) return 0;
  switch (v.dtype) {
    case DType::f64:
      return static_cast<const double*>(v.data)[i];
    case DType::f32:
      return static_cast<const float*>(v.data)[i];
    case DType::bf16: {
      const uint32_t bits = uint32_t{static_cast<const uint16_t*>(v.data)[i]} << 16;
      float out;
      __builtin_memcpy(&out, &bits, 4);
      return out;
    }
    case DType::f16: {
      const uint16_t bits = static_cast<const uint16_t*>(v.data)[i];
      const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
      const double magnitude = exponent == 31  ? (fraction != 0 ? std::nan("") : HUGE_VAL)
                               : exponent == 0 ? std::ldexp(fraction, -24)
                                               : std::ldexp(1024 + fraction, exponent - 25);
      return (bits & 0x8000) != 0 ? -magnitude : magnitude;
    }
  }
  return 0;
}

// Row blocks for R rows: as few as fit register tiles, but a multiple of the threads where there
// are rows enough, so that every thread gets the same work. Results do not depend on it.
template <class T>
int64_t count_blocks(int64_t rows, const LossLeaf<T>& leaf, const ParallelFor& parallel_for) {
  const int64_t least = ceil_div(rows, leaf.tile_rows);
  const int64_t even = ceil_div(least, parallel_for.num_threads()) * parallel_for.num_threads();
  return std::min(even, rows);
}

// Panels of a tile: its two layouts should fill half of a 1 MiB L2.
template <class T>
int64_t tile_panels(int64_t dim, int64_t panel) {
  constexpr int64_t kTileBytes = int64_t{512} << 10;
  return std::clamp<int64_t>(kTileBytes / (2 * dim * panel * static_cast<int64_t>(sizeof(T))), 4,
                             16);
}

template <class T>
PackedSamples<T> take_packed(int64_t samples, int64_t dim, bool with_rows, const LossLeaf<T>& leaf,
                             Workspace& workspace) {
  PackedSamples<T> packed{};
  packed.panels = ceil_div(samples, leaf.panel);
  packed.tile_panels = tile_panels<T>(dim, leaf.panel);
  packed.dim = dim;
  packed.padded_dim = ceil_div(dim, leaf.panel) * leaf.panel;
  packed.columns = workspace.take<T>(packed.panels * leaf.panel * dim);
  packed.adjust = workspace.take<T>(packed.panels * leaf.panel);
  if (with_rows) {
    packed.rows = workspace.take<T>(ceil_div(packed.panels, packed.tile_panels) *
                                    packed.tile_panels * leaf.panel * packed.padded_dim);
  }
  return packed;
}

// Packs samples [first, first + count): of `ids`, or the classes of those numbers where it is null.
template <class T>
void pack_samples(const LossProblem& problem, const int64_t* ids, const double* log_count,
                  int64_t first, int64_t count, PackedSamples<T>& packed, const LossLeaf<T>& leaf,
                  const ParallelFor& parallel_for) {
  packed.panels = ceil_div(count, leaf.panel);
  const int64_t* from = ids == nullptr ? nullptr : ids + first;
  parallel_for(packed.panels, 4, [&](int64_t begin, int64_t end) {
    leaf.gather_panels(problem.weight, from, first, count, packed, begin, end);
    for (int64_t s = begin * leaf.panel; s < end * leaf.panel; ++s) {
      const int64_t id = s < count ? (from == nullptr ? first + s : from[s]) : -1;
      packed.adjust[s] = id < 0
                             ? -std::numeric_limits<T>::infinity()
                             : static_cast<T>(element(problem.bias, id) * problem.inv_temperature -
                                              (log_count == nullptr ? 0 : log_count[first + s]));
    }
  });
}

// The corrected logit of row `row`'s target.
template <class T>
T target_logit(const LossProblem& problem, int64_t row, const LossLeaf<T>& leaf) {
  const int64_t target = problem.target[row];
  const T product = leaf.dot(problem.input, row, problem.weight, target, problem.dim);
  return static_cast<T>(product * problem.inv_temperature +
                        element(problem.bias, target) * problem.inv_temperature -
                        element(problem.target_log_expected_count, row));
}

// Starts row i of a chunk: reference at the target's logit, nothing summed yet.
template <class T>
void start_row(const RowChunk<T>& chunk, int64_t i, T logit, const LossLeaf<T>& leaf) {
  chunk.reference[i] = logit;
  chunk.settled[i] = 0;
  std::fill_n(chunk.sum + i * leaf.lanes, leaf.lanes, T(0));
  std::fill_n(chunk.peak + i * leaf.lanes, leaf.lanes, -std::numeric_limits<T>::infinity());
}

struct RowSums {
  double sampled;  // Σ_s exp(z_s − reference)
  double total;    // with the target's own term
};

// The row's loss from its sums; writes the results of its row of the batch.
template <class T>
RowSums end_row(const RowChunk<T>& chunk, int64_t i, const RowResults<T>& results,
                const LossLeaf<T>& leaf) {
  T sum, peak;
  leaf.reduce_row(chunk, i, &sum, &peak);
  const int64_t row = chunk.row_ids[i];
  const double logit = results.target_logit[row];
  const double above = static_cast<double>(chunk.reference[i]) - logit;  // 0 unless raised
  RowSums sums;
  sums.sampled = chunk.settled[i] + static_cast<double>(sum);
  sums.total = sums.sampled + std::exp(-above);
  const double loss = above == 0 ? std::log1p(sums.sampled) : above + std::log(sums.total);
  results.loss[row] = static_cast<T>(loss);
  results.lse[row] = static_cast<T>(logit + loss);
  if (results.error != nullptr) results.error[row] = peak + above > 0 ? T(1) : T(0);
  return sums;
}

}  // namespace ssc
