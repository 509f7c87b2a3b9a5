// Forward only: losses streamed over blocks of samples, for evaluation and for reduction="none".
#include "csrc/cpu/loss_steps.h"

namespace ssc {
namespace {

// Packed rows of one block of samples, and packed H of one chunk of rows: a few MiB each.
constexpr int64_t kBlockBytes = int64_t{8} << 20;

template <class T>
int64_t block_samples(int64_t samples, int64_t dim, const LossLeaf<T>& leaf) {
  const int64_t row_bytes = dim * static_cast<int64_t>(sizeof(T));
  const int64_t panels = std::max<int64_t>(kBlockBytes / (row_bytes * leaf.panel), 1);
  return std::min(samples, panels * leaf.panel);
}

template <class T>
int64_t chunk_rows(int64_t rows, int64_t dim) {
  const int64_t most = kBlockBytes / (dim * static_cast<int64_t>(sizeof(T)));
  return std::min(rows, std::clamp<int64_t>(most, 64, 2048));
}

// Per-row state of all rows, from which a chunk takes its part.
template <class T>
RowChunk<T> take_state(int64_t rows, const LossLeaf<T>& leaf, Workspace& workspace) {
  RowChunk<T> state{};
  state.rows = rows;
  state.reference = workspace.take<T>(rows);
  state.settled = workspace.take<double>(rows);
  state.sum = workspace.take<T>(rows * leaf.lanes);
  state.peak = workspace.take<T>(rows * leaf.lanes);
  return state;
}

template <class T>
RowChunk<T> part_of(const RowChunk<T>& state, int64_t first, int64_t rows,
                    const LossLeaf<T>& leaf) {
  RowChunk<T> chunk = state;
  chunk.rows = rows;
  chunk.row_ids += first;
  chunk.reference += first;
  chunk.settled += first;
  chunk.sum += first * leaf.lanes;
  chunk.peak += first * leaf.lanes;
  return chunk;
}

// Where row_hit gives, for a row, the sample that is its own target (or anything outside the
// block).
template <class T, class RowHit>
void stream_rows(const LossProblem& problem, const int64_t* ids, const double* log_count,
                 int64_t samples, const SamplePlan& plan, RowHit&& row_hit,
                 const RowResults<T>& results, Workspace& workspace, Isa isa,
                 const ParallelFor& parallel_for) {
  const LossLeaf<T>& leaf = loss_leaf<T>(isa);
  RowChunk<T> state = take_state(plan.rows, leaf, workspace);
  state.row_ids = plan.row_ids;
  const int64_t block = block_samples(samples, problem.dim, leaf);
  const int64_t rows = chunk_rows<T>(plan.rows, problem.dim);
  PackedSamples<T> packed = take_packed(block, problem.dim, false, leaf, workspace);
  T* packed_rows = workspace.take<T>(rows * problem.dim);
  int64_t* hit = workspace.take<int64_t>(rows);

  parallel_for(plan.rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = plan.row_ids[i];
      results.target_logit[row] = target_logit<T>(problem, row, leaf);
      start_row(state, i, results.target_logit[row], leaf);
    }
  });
  for (int64_t first = 0; first < samples; first += block) {
    const int64_t count = std::min(block, samples - first);
    pack_samples(problem, ids, log_count, first, count, packed, leaf, parallel_for);
    for (int64_t start = 0; start < plan.rows; start += rows) {
      RowChunk<T> chunk = part_of(state, start, std::min(rows, plan.rows - start), leaf);
      chunk.blocks = count_blocks(chunk.rows, leaf, parallel_for);
      chunk.packed = packed_rows;
      chunk.hit = hit;
      parallel_for(chunk.blocks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
          leaf.pack_rows(problem.input, chunk, problem.dim, b);
          const Range r = piece(chunk.rows, chunk.blocks, b);
          for (int64_t i = r.begin; i < r.end; ++i) hit[i] = row_hit(start + i) - first;
        }
        leaf.sweep(packed, chunk, static_cast<T>(problem.inv_temperature), begin, end);
        const int64_t last = piece(chunk.rows, chunk.blocks, end - 1).end;
        for (int64_t i = piece(chunk.rows, chunk.blocks, begin).begin; i < last; ++i) {
          T sum, peak;
          leaf.reduce_row(chunk, i, &sum, &peak);
          chunk.settled[i] += static_cast<double>(sum);
          std::fill_n(chunk.sum + i * leaf.lanes, leaf.lanes, T(0));
        }
      });
    }
  }
  for (int64_t i = 0; i < plan.rows; ++i) end_row(state, i, results, leaf);
}

}  // namespace

template <class T>
void loss_rows(const LossProblem& problem, const SamplePlan& plan, const RowResults<T>& results,
               Workspace& workspace, Isa isa, const ParallelFor& parallel_for) {
  // A removed hit is −1; so far below zero that it is in no block.
  const auto row_hit = [&](int64_t i) {
    return plan.hit[i] < 0 ? std::numeric_limits<int64_t>::min() / 2 : plan.hit[i];
  };
  stream_rows<T>(problem, plan.ids, plan.log_count, plan.distinct, plan, row_hit, results,
                 workspace, isa, parallel_for);
}

template <class T>
void exact_loss_rows(const LossProblem& problem, const SamplePlan& rows,
                     const RowResults<T>& results, Workspace& workspace, Isa isa,
                     const ParallelFor& parallel_for) {
  const auto row_hit = [&](int64_t i) { return problem.target[rows.row_ids[i]]; };
  stream_rows<T>(problem, nullptr, nullptr, problem.classes, rows, row_hit, results, workspace, isa,
                 parallel_for);
}

template <class T>
void logits(const LossProblem& problem, int64_t begin, int64_t count, MatrixView out,
            Workspace& workspace, Isa isa, const ParallelFor& parallel_for) {
  const LossLeaf<T>& leaf = loss_leaf<T>(isa);
  const int64_t block = block_samples(count, problem.dim, leaf);
  const int64_t rows = chunk_rows<T>(problem.batch, problem.dim);
  PackedSamples<T> packed = take_packed(block, problem.dim, false, leaf, workspace);
  RowChunk<T> chunk{};
  chunk.packed = workspace.take<T>(rows * problem.dim);
  int64_t* row_ids = workspace.take<int64_t>(problem.batch);
  for (int64_t i = 0; i < problem.batch; ++i) row_ids[i] = i;
  for (int64_t first = 0; first < count; first += block) {
    const int64_t classes = std::min(block, count - first);
    pack_samples(problem, nullptr, nullptr, begin + first, classes, packed, leaf, parallel_for);
    for (int64_t start = 0; start < problem.batch; start += rows) {
      chunk.rows = std::min(rows, problem.batch - start);
      chunk.row_ids = row_ids + start;
      chunk.blocks = count_blocks(chunk.rows, leaf, parallel_for);
      parallel_for(chunk.blocks, 1, [&](int64_t b, int64_t end) {
        for (int64_t i = b; i < end; ++i) leaf.pack_rows(problem.input, chunk, problem.dim, i);
        leaf.logits(packed, chunk, static_cast<T>(problem.inv_temperature), classes, b, end, out,
                    first);
      });
    }
  }
}

template void loss_rows(const LossProblem&, const SamplePlan&, const RowResults<float>&, Workspace&,
                        Isa, const ParallelFor&);
template void loss_rows(const LossProblem&, const SamplePlan&, const RowResults<double>&,
                        Workspace&, Isa, const ParallelFor&);
template void exact_loss_rows(const LossProblem&, const SamplePlan&, const RowResults<float>&,
                              Workspace&, Isa, const ParallelFor&);
template void exact_loss_rows(const LossProblem&, const SamplePlan&, const RowResults<double>&,
                              Workspace&, Isa, const ParallelFor&);
template void logits<float>(const LossProblem&, int64_t, int64_t, MatrixView, Workspace&, Isa,
                            const ParallelFor&);
template void logits<double>(const LossProblem&, int64_t, int64_t, MatrixView, Workspace&, Isa,
                             const ParallelFor&);

}  // namespace ssc
