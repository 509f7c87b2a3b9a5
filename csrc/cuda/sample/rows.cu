// A thread computes a Philox block, two draws of one row. 8 B S bytes of ids and 4 B S of counts
// are written; the weighted proposal reads a line of its table and one of its probabilities for
// each.
#include "csrc/cuda/device/grid.h"
#include "csrc/cuda/sample/sample.h"

namespace ssc::cuda {
namespace {

template <class Proposal>
__global__ void __launch_bounds__(kElementThreads)
    draw_rows_kernel(const __grid_constant__ Proposal proposal,
                     const __grid_constant__ LogCount log_counts, const int64_t* key,
                     int64_t first_row, int64_t rows, int64_t samples, int64_t* ids,
                     float* log_count) {
  const PhiloxKey philox = load_key(key);
  const int64_t pairs = (samples + 1) / 2;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * pairs;
       i += stride) {
    const int64_t row = i / pairs, pair = i % pairs;
    const TwoIds drawn =
        two_draws(proposal, row_key(philox, first_row + row), static_cast<uint64_t>(pair));
    const auto put = [&](int64_t s, int64_t id) {
      if (s >= samples) return;
      ids[row * samples + s] = id;
      if (log_count == nullptr) return;
      const double q = proposal.probability(id);
      log_count[row * samples + s] =
          static_cast<float>(log_expected_count<ScalarLane>(q, log_counts));
    };
    put(2 * pair, drawn.first);
    put(2 * pair + 1, drawn.second);
  }
}

}  // namespace

template <class Proposal>
cudaError_t draw_rows(const Proposal& proposal, const int64_t* key, int64_t first_row, int64_t rows,
                      int64_t samples, int64_t* ids, float* log_count, cudaStream_t stream) {
  if (rows == 0 || samples == 0) return cudaSuccess;
  return launch(draw_rows_kernel<Proposal>, element_blocks(rows * ceil_div(samples, 2)),
                kElementThreads, 0, stream, proposal,
                as_correction(log_count_with_replacement(static_cast<uint64_t>(samples))), key,
                first_row, rows, samples, ids, log_count);
}

#define SSC_DRAW_ROWS_INSTANCE(Proposal)                                                     \
  template cudaError_t draw_rows(const Proposal&, const int64_t*, int64_t, int64_t, int64_t, \
                                 int64_t*, float*, cudaStream_t)
SSC_FOR_PROPOSALS(SSC_DRAW_ROWS_INSTANCE);
#undef SSC_DRAW_ROWS_INSTANCE

}  // namespace ssc::cuda
