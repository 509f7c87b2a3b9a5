// CUB's radix sorts: all of the GPU for a race of many classes, a block for each row of several.
// nvcc alone compiles this: csrc/simt has a twin.
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>

#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_segmented_radix_sort.cuh>
#include <cuda/functional>

#include "csrc/cuda/device/returned_error.h"
#include "csrc/cuda/sample/sample.h"

namespace ssc::cuda {
namespace {

struct RowEdge {
  int stride, offset;
  __host__ __device__ int operator()(int row) const { return row * stride + offset; }
};

}  // namespace

cudaError_t sort_arrivals(void* temporary, size_t& bytes, const double* times,
                          const int64_t* classes, int64_t rows, int64_t num_classes, double* sorted,
                          int64_t* order, cudaStream_t stream) {
  // As unsigned integers, numbers that are not negative have the same order.
  const auto* keys = reinterpret_cast<const uint64_t*>(times);
  auto* const sorted_keys = reinterpret_cast<uint64_t*>(sorted);
  constexpr int kBits = 63;
  if (rows == 1) {
    return returned(cub::DeviceRadixSort::SortPairs(temporary, bytes, keys, sorted_keys, classes,
                                                    order, num_classes, 0, kBits, stream));
  }
  const auto stride = static_cast<int>(race_stride(num_classes));
  const auto count = static_cast<int>(rows) * stride;
  const thrust::counting_iterator<int> row(0);
  const auto begins = thrust::make_transform_iterator(row, RowEdge{stride, 0});
  const auto ends =
      thrust::make_transform_iterator(row, RowEdge{stride, static_cast<int>(num_classes)});
  return returned(cub::DeviceSegmentedRadixSort::SortPairs(
      temporary, bytes, keys, sorted_keys, classes, order, count, static_cast<int>(rows), begins,
      ends, 0, kBits, stream));
}

}  // namespace ssc::cuda
