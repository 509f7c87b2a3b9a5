// One thread computes a Philox block, two draws, and writes them as 16 bytes: consecutive threads
// fill whole sectors, 8 S bytes in all.
#include "csrc/cuda/device/grid.h"
#include "csrc/cuda/device/vector_access.h"
#include "csrc/cuda/sample/sample.h"

namespace ssc::cuda {

namespace {

template <class Proposal>
__global__ void __launch_bounds__(kElementThreads)
    draw_kernel(const __grid_constant__ Proposal proposal, const int64_t* key, int64_t num_samples,
                int64_t* ids) {
  const PhiloxKey philox = load_key(key);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t pair = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       2 * pair < num_samples; pair += stride) {
    const TwoIds drawn = two_draws(proposal, philox, static_cast<uint64_t>(pair));
    if (2 * pair + 1 == num_samples) {
      ids[2 * pair] = drawn.first;
    } else {
      store_vector(ids + 2 * pair, drawn);
    }
  }
}

template <class Proposal>
__global__ void __launch_bounds__(kElementThreads)
    log_expected_counts_kernel(const __grid_constant__ Proposal proposal,
                               const __grid_constant__ LogCount log_count, const double* tries,
                               const int64_t* ids, int64_t count, float* out) {
  // Member by member: of a struct that is chosen between a __grid_constant__ parameter and another,
  // nvcc 13.0 takes the first member from the parameter always, for 7.5 to 9.0 (check_kernels.py).
  const LogCount counts = {log_count.distinct || tries != nullptr,
                           tries == nullptr ? log_count.tries : *tries, log_count.log_num_samples,
                           log_count.log_zero};
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    const double q = proposal.probability(ids[i]);
    out[i] = static_cast<float>(log_expected_count<ScalarLane>(q, counts));
  }
}

}  // namespace

LogUniformProposal log_uniform_proposal(uint64_t num_classes) {
  LogUniformProposal proposal{make_log_uniform(num_classes), {}};
  for (int i = 0; i < 16; ++i) proposal.exp2_table[i] = kExp2Table[i];
  return proposal;
}

template <class Proposal>
cudaError_t draw(const Proposal& proposal, const int64_t* key, int64_t num_samples, int64_t* ids,
                 cudaStream_t stream) {
  if (num_samples == 0) return cudaSuccess;
  return launch(draw_kernel<Proposal>, element_blocks(ceil_div(num_samples, 2)), kElementThreads, 0,
                stream, proposal, key, num_samples, ids);
}

template <class Proposal>
cudaError_t log_expected_counts(const Proposal& proposal, const LogCount& log_count,
                                const double* tries, const int64_t* ids, int64_t count, float* out,
                                cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  return launch(log_expected_counts_kernel<Proposal>, element_blocks(count), kElementThreads, 0,
                stream, proposal, log_count, tries, ids, count, out);
}

#define SSC_SAMPLE_INSTANCE(Proposal)                                                          \
  template cudaError_t draw(const Proposal&, const int64_t*, int64_t, int64_t*, cudaStream_t); \
  template cudaError_t log_expected_counts(const Proposal&, const LogCount&, const double*,    \
                                           const int64_t*, int64_t, float*, cudaStream_t)
SSC_FOR_PROPOSALS(SSC_SAMPLE_INSTANCE);
#undef SSC_SAMPLE_INSTANCE

}  // namespace ssc::cuda
