// Forward only: losses streamed over the samples, for evaluation and for reduction="none"; and
// plain logits. Nothing is kept per pair of row and sample.
#include "csrc/cpu/loss/row_steps.h"

namespace ssc {
namespace {

// Rows at a time: a few MiB of packed H.
template <class T>
int64_t chunk_rows(int64_t rows, int64_t dim) {
  constexpr int64_t kPackedBytes = int64_t{8} << 20;
  const int64_t most = kPackedBytes / (dim * static_cast<int64_t>(sizeof(T)));
  return std::min(rows, std::clamp<int64_t>(most, 64, 2048));
}

// row_hit(i): the sample that is the target of the i-th row that counts, or −1.
template <class T, class RowHit>
void stream_rows(const LossProblem& problem, const Samples& samples, const SamplePlan& plan,
                 RowHit&& row_hit, const RowResults<T>& results, Workspace& workspace, Isa isa,
                 const ParallelFor& parallel_for) {
  const LossKernels<T>& kernels = kernels_for<T>(isa, problem);
  const int64_t most = chunk_rows<T>(plan.rows, problem.dim);
  RowChunk<T> chunk = take_chunk(most, problem.dim, kernels, workspace);
  for (int64_t start = 0; start < plan.rows; start += most) {
    set_rows(chunk, plan, start, std::min(most, plan.rows - start), kernels, parallel_for);
    parallel_for(chunk.blocks.count, 1, [&](int64_t begin, int64_t end) {
      Workspace local;
      const Tile<T> tile = take_tile(problem.dim, false, kernels, local);
      const Range rows =
          start_rows(problem, samples, plan, start, chunk, begin, end, results, kernels);
      if (problem.negatives == nullptr) {
        for (int64_t i = rows.begin; i < rows.end; ++i) chunk.hits.sample[i] = row_hit(start + i);
      }
      kernels.sweep(samples, tile, chunk, begin, end);
      for (int64_t i = rows.begin; i < rows.end; ++i)
        end_row(problem, plan, start, chunk, i, results, kernels);
    });
  }
}

}  // namespace

template <class T>
void loss_rows(const LossProblem& problem, const SamplePlan& plan, const RowResults<T>& results,
               Workspace& workspace, Isa isa, const ParallelFor& parallel_for) {
  const auto row_hit = [&](int64_t i) { return plan.hit[i]; };
  stream_rows(problem, distinct_samples(problem, plan), plan, row_hit, results, workspace, isa,
              parallel_for);
}

template <class T>
void exact_loss_rows(const LossProblem& problem, const SamplePlan& rows,
                     const RowResults<T>& results, Workspace& workspace, Isa isa,
                     const ParallelFor& parallel_for) {
  const auto row_hit = [&](int64_t i) { return problem.target[rows.row_ids[i]]; };
  stream_rows(problem, class_range(problem, 0, problem.classes), rows, row_hit, results, workspace,
              isa, parallel_for);
}

template <class T>
void logits(const LossProblem& problem, int64_t begin, int64_t count, MatrixView out,
            Workspace& workspace, Isa isa, const ParallelFor& parallel_for) {
  const LossKernels<T>& kernels = kernels_for<T>(isa, problem);
  const int64_t most = chunk_rows<T>(problem.batch, problem.dim);
  const Samples classes = class_range(problem, begin, count);
  SamplePlan plan;
  plan.row_ids = workspace.take<int64_t>(problem.batch);
  for (int64_t i = 0; i < problem.batch; ++i) plan.row_ids[i] = i;
  RowChunk<T> chunk = take_chunk(most, problem.dim, kernels, workspace);
  for (int64_t start = 0; start < problem.batch; start += most) {
    set_rows(chunk, plan, start, std::min(most, problem.batch - start), kernels, parallel_for);
    parallel_for(chunk.blocks.count, 1, [&](int64_t b, int64_t end) {
      Workspace local;
      const Tile<T> tile = take_tile(problem.dim, false, kernels, local);
      for (int64_t i = b; i < end; ++i) kernels.pack_rows(problem.input, chunk, problem.dim, i);
      kernels.logits(classes, tile, chunk, b, end, out);
    });
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
