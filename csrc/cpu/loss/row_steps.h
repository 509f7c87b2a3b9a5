// Steps that the forward-only pass and the pass with gradients share.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "csrc/core/logit_correction.h"
#include "csrc/cpu/base/prefetch.h"
#include "csrc/cpu/loss/loss.h"
#include "csrc/cpu/loss/table.h"

namespace ssc {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline double element(const Vector& v, int64_t i) {
  if (v.data == nullptr) return 0;
  switch (v.dtype) {
    case DType::f64:
      return static_cast<const double*>(v.data)[i];
    case DType::f32:
      return static_cast<const float*>(v.data)[i];
    case DType::bf16:
      return to_float(static_cast<const BFloat16*>(v.data)[i]);
    case DType::f16:
      return to_float(static_cast<const Float16*>(v.data)[i]);
  }
  return 0;
}

template <class T>
const LossKernels<T>& kernels_for(Isa isa, const LossProblem& problem) {
  return loss_kernels<T>(isa, problem.input.dtype, problem.weight.dtype, problem.products);
}

// The correction of the logit of row `row`'s target.
inline double target_correction(const LossProblem& problem, int64_t row) {
  return correction_of(element(problem.target_log_expected_count, row));
}

// n elements, filled up to whole units.
template <class T>
int64_t filled_up(int64_t n, const LossKernels<T>& kernels) {
  return ceil_div(n, kernels.unit) * kernels.unit;
}

// Row blocks for R rows: as few as fit register tiles, but a multiple of the threads where there
// are rows enough, so that every thread gets the same work. Results do not depend on it.
template <class T>
Partition row_blocks(int64_t rows, const LossKernels<T>& kernels, const ParallelFor& parallel_for) {
  const int64_t least = ceil_div(rows, kernels.tile_rows);
  const int64_t even = ceil_div(least, parallel_for.num_threads()) * parallel_for.num_threads();
  return partition(rows, std::min(even, ceil_div(rows, kernels.unit)), kernels.unit);
}

// A thread's own tile of packed samples. Its two layouts should fill a part of L2 that leaves room
// for the rows in work.
template <class T>
Tile<T> take_tile(int64_t dim, bool with_rows, const LossKernels<T>& kernels,
                  Workspace& workspace) {
  constexpr int64_t kTileBytes = int64_t{256} << 10;
  const int64_t words = filled_up(dim, kernels) / kernels.word;
  const int64_t panel_bytes = 2 * words * kernels.panel * static_cast<int64_t>(sizeof(T));
  Tile<T> tile{};
  tile.panels = std::clamp<int64_t>(kTileBytes / panel_bytes, 4, 16);
  tile.padded_dim = ceil_div(dim, kernels.panel) * kernels.panel;
  tile.columns = workspace.take<T>(tile.panels * kernels.panel * words);
  for (T** of_samples :
       {&tile.shift, &tile.bias, &tile.log_count, &tile.log_copies, &tile.copies}) {
    *of_samples = workspace.take<T>(tile.panels * kernels.panel);
  }
  if (with_rows) {
    tile.rows = workspace.take<T>(tile.panels * kernels.panel / kernels.word * tile.padded_dim);
  }
  return tile;
}

// The plan's distinct samples.
inline Samples distinct_samples(const LossProblem& problem, const SamplePlan& plan) {
  Samples samples{};
  samples.weight = problem.weight;
  samples.bias = problem.bias;
  samples.ids = plan.ids;
  samples.log_count = plan.log_count;
  samples.log_copies = plan.log_copies;
  samples.count = plan.distinct;
  samples.dim = problem.dim;
  samples.inv_temperature = problem.inv_temperature;
  samples.negatives = problem.negatives;
  return samples;
}

// Classes [begin, begin + count) as samples with n = 1.
inline Samples class_range(const LossProblem& problem, int64_t begin, int64_t count) {
  Samples samples{};
  samples.weight = problem.weight;
  samples.bias = problem.bias;
  samples.first = begin;
  samples.count = count;
  samples.dim = problem.dim;
  samples.inv_temperature = problem.inv_temperature;
  return samples;
}

// Memory for chunks of up to `rows` rows, without what only the gradients need.
template <class T>
RowChunk<T> take_chunk(int64_t rows, int64_t dim, const LossKernels<T>& kernels,
                       Workspace& workspace) {
  RowChunk<T> chunk{};
  chunk.packed =
      workspace.take<T>(filled_up(rows, kernels) * filled_up(dim, kernels) / kernels.word);
  chunk.sums.reference = workspace.take<T>(rows);
  chunk.sums.settled = workspace.take<double>(rows);
  chunk.sums.sum = workspace.take<T>(rows * kernels.lanes);
  chunk.sums.peak = workspace.take<T>(rows * kernels.lanes);
  chunk.hits.sample = workspace.take<int64_t>(rows);
  chunk.hits.next = workspace.take<int64_t>(rows);
  return chunk;
}

// The chunk's next rows are `rows` of the plan's from `start` on.
template <class T>
void set_rows(RowChunk<T>& chunk, const SamplePlan& plan, int64_t start, int64_t rows,
              const LossKernels<T>& kernels, const ParallelFor& parallel_for) {
  chunk.rows = rows;
  chunk.row_ids = plan.row_ids + start;
  chunk.hits.removed = plan.remove_hits;
  chunk.hits.list = plan.hit_list;
  chunk.hits.end = plan.hit_begin == nullptr ? nullptr : plan.hit_begin + start + 1;
  chunk.blocks = row_blocks(rows, kernels, parallel_for);
}

// Targets' rows of W lie anywhere in memory: ask for them some rows ahead.
constexpr int64_t kPrefetchRows = 8;

template <class T>
void prefetch_target(const LossProblem& problem, const RowChunk<T>& chunk, int64_t i, int64_t end) {
  if (i >= end || problem.target == nullptr) return;
  const char* row = problem.weight.row(problem.target[chunk.row_ids[i]]);
  prefetch_lines(row, problem.dim * element_size(problem.weight.dtype));
}

// The corrected logit of row `row`'s target.
template <class T>
T target_logit(const LossProblem& problem, int64_t row, const LossKernels<T>& kernels) {
  const int64_t target = problem.target[row];
  const T product = kernels.dot(problem.input, row, problem.weight, target, problem.dim);
  return static_cast<T>(product * problem.inv_temperature +
                        element(problem.bias, target) * problem.inv_temperature -
                        target_correction(problem, row));
}

// The row's next hit is its first, if it has any.
template <class T>
void start_hits(const SamplePlan& plan, const RowChunk<T>& chunk, int64_t start, int64_t i) {
  int64_t next = plan.hit_begin[start + i];
  chunk.hits.sample[i] = next < chunk.hits.end[i] ? plan.hit_list[next++] : -1;
  chunk.hits.next[i] = next;
}

// Where a row starts whose target has no logit to start from, −inf: at the first sample that has
// one. Its E is 1 then, so the sums can't vanish however low all logits are; higher samples raise
// the reference as ever. 0 if there is none.
template <class T>
T first_finite_logit(const LossProblem& problem, const Samples& samples, bool remove_hits,
                     int64_t row, const LossKernels<T>& kernels) {
  for (int64_t s = 0; s < samples.count; ++s) {
    const int64_t id = samples.ids == nullptr ? samples.first + s : samples.ids[s];
    if (remove_hits && problem.target != nullptr && id == problem.target[row]) continue;
    const T product = kernels.dot(problem.input, row, problem.weight, id, problem.dim);
    const double count = samples.log_count == nullptr ? 0 : samples.log_count[s];
    double x = (product + element(problem.bias, id)) * problem.inv_temperature;
    const double softcap = problem.negatives == nullptr ? 0 : problem.negatives->softcap;
    if (softcap > 0) x = softcap * std::tanh(x / softcap);
    const T logit = static_cast<T>(x - count);
    if (std::isfinite(logit)) return logit;
  }
  return T(0);
}

// The logit that a row's loss is relative to: its target's, which is noted; for negatives the one
// that is given, none for a sum of softplus.
template <class T>
T own_logit(const LossProblem& problem, int64_t row, const RowResults<T>& results,
            const LossKernels<T>& kernels) {
  if (problem.negatives == nullptr) {
    return results.target_logit[row] = target_logit<T>(problem, row, kernels);
  }
  return problem.negatives->sigmoid ? T(0) : static_cast<T>(element(problem.target_logit, row));
}

// Packs row blocks [begin, end) and starts their rows, `start` being the chunk's first of the
// plan's: reference at the target's logit, nothing summed yet. Returns the rows.
template <class T>
Range start_rows(const LossProblem& problem, const Samples& samples, const SamplePlan& plan,
                 int64_t start, const RowChunk<T>& chunk, int64_t begin, int64_t end,
                 const RowResults<T>& results, const LossKernels<T>& kernels) {
  const Range rows = {piece(chunk.blocks, begin).begin, piece(chunk.blocks, end - 1).end};
  for (int64_t b = begin; b < end; ++b) kernels.pack_rows(problem.input, chunk, problem.dim, b);
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    const int64_t row = chunk.row_ids[i];
    prefetch_target(problem, chunk, i + kPrefetchRows, rows.end);
    const T logit = own_logit(problem, row, results, kernels);
    if (problem.negatives != nullptr) start_hits(plan, chunk, start, i);
    chunk.sums.reference[i] =
        std::isinf(logit) && logit < 0  // z − (−inf) would be inf
            ? first_finite_logit<T>(problem, samples, chunk.hits.removed, row, kernels)
            : logit;
    chunk.sums.settled[i] = 0;
    std::fill_n(chunk.sums.sum + i * kernels.lanes, kernels.lanes, T(0));
    std::fill_n(chunk.sums.peak + i * kernels.lanes, kernels.lanes,
                -std::numeric_limits<T>::infinity());
  }
  return rows;
}

struct RowSums {
  double sampled;  // Σ_s exp(z_s − reference)
  double total;    // with the target's own term
};

// Whether a kept hit beats the row's own target: their products are the same, so only log n
// decides.
inline bool beaten_by_hit(const LossProblem& problem, const SamplePlan& plan, int64_t planned) {
  const int64_t hit = plan.remove_hits || plan.distinct == 0 ? -1 : plan.hit[planned];
  if (hit < 0) return false;
  const double single = plan.log_count[hit] + plan.log_copies[hit];
  return target_correction(problem, plan.row_ids[planned]) > single;
}

// The loss of the chunk's row i from its sums; writes the results of its row of the batch. The
// chunk starts at plan.row_ids[start].
template <class T>
RowSums end_row(const LossProblem& problem, const SamplePlan& plan, int64_t start,
                const RowChunk<T>& chunk, int64_t i, const RowResults<T>& results,
                const LossKernels<T>& kernels) {
  RowSums sums;
  T peak;
  kernels.reduce_row(chunk, i, &sums.sampled, &peak);
  const int64_t row = chunk.row_ids[i];
  const double reference = chunk.sums.reference[i];
  if (problem.negatives != nullptr) results.peak[row] = static_cast<T>(peak + reference);
  if (problem.negatives != nullptr && problem.negatives->sigmoid) {
    results.loss[row] = static_cast<T>(sums.sampled);
    sums.total = 1;  // E is the derivative already
    return sums;
  }
  const double logit =
      problem.negatives == nullptr ? results.target_logit[row] : element(problem.target_logit, row);
  const double above = reference - logit;  // 0 unless raised
  sums.total = sums.sampled + std::exp(-above);
  const double loss = above == 0 ? std::log1p(sums.sampled) : above + std::log(sums.total);
  results.loss[row] = static_cast<T>(loss);
  if (problem.negatives != nullptr) return sums;
  results.lse[row] = static_cast<T>(above == 0 ? logit + loss : reference + std::log(sums.total));
  const bool beaten = peak + above > 0 || beaten_by_hit(problem, plan, start + i);
  results.error[row] = beaten ? T(1) : T(0);
  return sums;
}

}  // namespace ssc
