// One thread computes a Philox block, two draws, and writes them as 16 bytes: consecutive threads
// fill whole sectors, 8 S bytes in all. The arithmetic is csrc/core's, one number at a time.
#include "csrc/core/philox.h"
#include "csrc/core/uniform.h"
#include "csrc/cuda/grid.h"
#include "csrc/cuda/sample.h"
#include "csrc/cuda/vector_access.h"

namespace ssc::cuda {

__device__ int64_t UniformProposal::draw(uint64_t bits) const {
  return static_cast<int64_t>(uniform_id<ScalarLane, false>(bits, num_classes));
}
__device__ double UniformProposal::probability(int64_t id) const {
  const bool valid = static_cast<uint64_t>(id) < num_classes;
  return valid ? 1.0 / static_cast<double>(num_classes) : kNoClass;
}

__device__ int64_t LogUniformProposal::draw(uint64_t bits) const {
  return static_cast<int64_t>(log_uniform_id<ScalarLane>(bits, parameters, exp2_table));
}
__device__ double LogUniformProposal::probability(int64_t id) const {
  return log_uniform_probability<ScalarLane>(static_cast<uint64_t>(id), parameters);
}

__device__ int64_t WeightedProposal::draw(uint64_t bits) const {
  return static_cast<int64_t>(alias_id<ScalarLane, false>(bits, table));
}
__device__ double WeightedProposal::probability(int64_t id) const {
  return static_cast<uint64_t>(id) < table.num_classes ? probabilities[id] : kNoClass;
}

namespace {

struct __align__(16) TwoIds {
  int64_t first, second;
};

template <class Proposal>
__global__ void __launch_bounds__(kElementThreads)
    draw_kernel(const __grid_constant__ Proposal proposal, const int64_t* key, int64_t num_samples,
                int64_t* ids) {
  const uint64_t seed = static_cast<uint64_t>(key[0]), offset = static_cast<uint64_t>(key[1]);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t block = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       2 * block < num_samples; block += stride) {
    const uint64_t counter = offset + static_cast<uint64_t>(block);
    const PhiloxWords<uint64_t> w = philox4x32_10<ScalarLane>({counter, counter >> 32, 0, 0}, seed);
    const int64_t first = proposal.draw(join_words<ScalarLane>(w.w0, w.w1));
    if (2 * block + 1 == num_samples) {
      ids[2 * block] = first;
    } else {
      const int64_t second = proposal.draw(join_words<ScalarLane>(w.w2, w.w3));
      store_vector(ids + 2 * block, TwoIds{first, second});
    }
  }
}

template <class Proposal>
__global__ void __launch_bounds__(kElementThreads)
    log_expected_counts_kernel(const __grid_constant__ Proposal proposal,
                               const __grid_constant__ LogCount log_count, const double* tries,
                               const int64_t* ids, int64_t count, float* out) {
  const LogCount counts = tries == nullptr ? log_count : log_count_distinct(*tries);
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
SSC_SAMPLE_INSTANCE(UniformProposal);
SSC_SAMPLE_INSTANCE(LogUniformProposal);
SSC_SAMPLE_INSTANCE(WeightedProposal);
#undef SSC_SAMPLE_INSTANCE

}  // namespace ssc::cuda
