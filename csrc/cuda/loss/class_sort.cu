// CUB's radix sort, over as many bits as a class has. nvcc alone compiles this: csrc/simt has a
// twin.
#include <cub/device/device_radix_sort.cuh>

#include "csrc/cuda/device/returned_error.h"
#include "csrc/cuda/loss/class_list.h"

namespace ssc::cuda {

cudaError_t sort_classes(void* temporary, size_t& bytes, const int64_t* classes,
                         const int64_t* entries, int64_t count, int64_t num_classes,
                         int64_t* sorted_classes, int64_t* order, cudaStream_t stream) {
  // Never negative: unsigned keys spare the sign.
  int bits = 0;
  for (auto rest = static_cast<uint64_t>(num_classes); rest != 0; rest >>= 1) ++bits;
  return returned(
      cub::DeviceRadixSort::SortPairs(temporary, bytes, reinterpret_cast<const uint64_t*>(classes),
                                      reinterpret_cast<uint64_t*>(sorted_classes), entries, order,
                                      static_cast<int>(count), 0, bits, stream));
}

}  // namespace ssc::cuda
