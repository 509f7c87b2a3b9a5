// One thread computes a Philox block, the bits of two classes, and writes their times and their
// numbers as 16 bytes each: 16 C bytes in all, and 8 C more are read of a weighted proposal.
#include "csrc/cuda/grid.h"
#include "csrc/cuda/sample_race.h"
#include "csrc/cuda/vector_access.h"

namespace ssc::cuda {
namespace {

template <class T>
struct __align__(16) Two {
  T first, second;
};

template <class Proposal>
__global__ void __launch_bounds__(kElementThreads)
    arrival_times_kernel(const __grid_constant__ Proposal proposal, const int64_t* key,
                         int64_t num_classes, double* times, int64_t* classes) {
  const PhiloxKey philox = load_key(key);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t pair = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       2 * pair < num_classes; pair += stride) {
    const TwoBits bits = two_bits(philox, static_cast<uint64_t>(pair));
    const double first = arrival_time<ScalarLane>(bits.first, proposal.probability(2 * pair));
    if (2 * pair + 1 == num_classes) {
      times[2 * pair] = first;
      classes[2 * pair] = 2 * pair;
    } else {
      const double q = proposal.probability(2 * pair + 1);
      const double second = arrival_time<ScalarLane>(bits.second, q);
      store_vector(times + 2 * pair, Two<double>{first, second});
      store_vector(classes + 2 * pair, Two<int64_t>{2 * pair, 2 * pair + 1});
    }
  }
}

__global__ void race_draws_kernel(const double* time, int64_t num_samples, int64_t* num_draws) {
  const double draws = ceil(*time < 0x1p62 ? *time : 0x1p62);
  const auto whole = static_cast<int64_t>(draws);
  *num_draws = whole > num_samples ? whole : num_samples;
}

}  // namespace

template <class Proposal>
cudaError_t arrival_times(const Proposal& proposal, const int64_t* key, double* times,
                          int64_t* classes, cudaStream_t stream) {
  const auto count = static_cast<int64_t>(num_classes(proposal));
  return launch(arrival_times_kernel<Proposal>, element_blocks(ceil_div(count, 2)), kElementThreads,
                0, stream, proposal, key, count, times, classes);
}

cudaError_t race_draws(const double* time, int64_t num_samples, int64_t* num_draws,
                       cudaStream_t stream) {
  return launch(race_draws_kernel, 1, 1, 0, stream, time, num_samples, num_draws);
}

#define SSC_SAMPLE_RACE_INSTANCE(Proposal)                                               \
  template cudaError_t arrival_times(const Proposal&, const int64_t*, double*, int64_t*, \
                                     cudaStream_t)
SSC_SAMPLE_RACE_INSTANCE(UniformProposal);
SSC_SAMPLE_RACE_INSTANCE(LogUniformProposal);
SSC_SAMPLE_RACE_INSTANCE(WeightedProposal);
#undef SSC_SAMPLE_RACE_INSTANCE

}  // namespace ssc::cuda
