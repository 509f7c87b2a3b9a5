// One thread computes a Philox block, the bits of two classes, and writes their times and their
// numbers as 16 bytes each: 16 C bytes of a row in all, and 8 C more are read of a weighted
// proposal. An entry of a list costs a sector of 32 bytes.
#include "csrc/cuda/device/grid.h"
#include "csrc/cuda/device/vector_access.h"
#include "csrc/cuda/sample/sample.h"

namespace ssc::cuda {
namespace {

template <class T>
struct __align__(16) Two {
  T first, second;
};

template <class Proposal>
__global__ void __launch_bounds__(kElementThreads)
    arrival_times_kernel(const __grid_constant__ Proposal proposal, const int64_t* key,
                         int64_t first_row, int64_t rows, double* times, int64_t* classes) {
  const PhiloxKey philox = load_key(key);
  const auto count = static_cast<int64_t>(num_classes(proposal));
  const int64_t pairs = race_stride(count) / 2;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const PhiloxKey of_row = row_key(philox, first_row + row);
    for (int64_t pair = begin; pair < pairs; pair += stride) {
      const TwoBits bits = two_bits(of_row, static_cast<uint64_t>(pair));
      const int64_t id = 2 * pair, at = 2 * (row * pairs + pair);
      const double first = arrival_time<ScalarLane>(bits.first, proposal.probability(id));
      // After an odd number of classes comes one that never arrives.
      const double q = id + 1 < count ? proposal.probability(id + 1) : 0.0;
      const double second = arrival_time<ScalarLane>(bits.second, q);
      store_vector(times + at, Two<double>{first, second});
      store_vector(classes + at, Two<int64_t>{id, id + 1});
    }
  }
}

__global__ void __launch_bounds__(kElementThreads)
    bar_classes_kernel(const int64_t* exclude, int64_t rows, int64_t num_excluded,
                       int64_t num_classes, double* times) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < rows * num_excluded; i += stride) {
    const int64_t id = exclude[i];
    if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(num_classes)) continue;
    // Atomic, because a list may have an id twice.
    atomicMax(reinterpret_cast<unsigned long long*>(times) +
                  i / num_excluded * race_stride(num_classes) + id,
              0x7ff0000000000000ull);  // as an integer too, no time is above infinity
  }
}

__global__ void __launch_bounds__(kElementThreads)
    first_arrivals_kernel(const double* sorted_times, const int64_t* arrivals, int64_t num_samples,
                          int64_t* ids, int64_t* num_draws) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t s = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; s < num_samples;
       s += stride) {
    ids[s] = arrivals[s];
    if (s + 1 == num_samples) *num_draws = draws_of_race(sorted_times[s], num_samples);
  }
}

}  // namespace

template <class Proposal>
cudaError_t arrival_times(const Proposal& proposal, const int64_t* key, int64_t first_row,
                          int64_t rows, double* times, int64_t* classes, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  const int64_t pairs = race_stride(static_cast<int64_t>(num_classes(proposal))) / 2;
  const dim3 grid(element_blocks(pairs), static_cast<unsigned>(rows < 1024 ? rows : 1024));
  return launch(arrival_times_kernel<Proposal>, grid, kElementThreads, 0, stream, proposal, key,
                first_row, rows, times, classes);
}

cudaError_t bar_classes(const int64_t* exclude, int64_t rows, int64_t num_excluded,
                        int64_t num_classes, double* times, cudaStream_t stream) {
  if (rows * num_excluded == 0) return cudaSuccess;
  return launch(bar_classes_kernel, element_blocks(rows * num_excluded), kElementThreads, 0, stream,
                exclude, rows, num_excluded, num_classes, times);
}

cudaError_t first_arrivals(const double* sorted_times, const int64_t* arrivals, int64_t num_samples,
                           int64_t* ids, int64_t* num_draws, cudaStream_t stream) {
  return launch(first_arrivals_kernel, element_blocks(num_samples), kElementThreads, 0, stream,
                sorted_times, arrivals, num_samples, ids, num_draws);
}

#define SSC_SAMPLE_RACE_INSTANCE(Proposal)                                                       \
  template cudaError_t arrival_times(const Proposal&, const int64_t*, int64_t, int64_t, double*, \
                                     int64_t*, cudaStream_t)
SSC_FOR_PROPOSALS(SSC_SAMPLE_RACE_INSTANCE);
#undef SSC_SAMPLE_RACE_INSTANCE

}  // namespace ssc::cuda
