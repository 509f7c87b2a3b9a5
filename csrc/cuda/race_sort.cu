// CUB's radix sort. nvcc alone compiles this: csrc/simt has a twin.
#include <cub/device/device_radix_sort.cuh>

#include "csrc/cuda/race_sort.h"

namespace ssc::cuda {

cudaError_t sort_arrivals(void* temporary, size_t& bytes, const double* time,
                          const int64_t* classes, int64_t num_classes, double* sorted,
                          int64_t* order, cudaStream_t stream) {
  // As unsigned integers, numbers that are not negative have the same order.
  return cub::DeviceRadixSort::SortPairs(temporary, bytes, reinterpret_cast<const uint64_t*>(time),
                                         reinterpret_cast<uint64_t*>(sorted), classes, order,
                                         num_classes, 0, 63, stream);
}

}  // namespace ssc::cuda
