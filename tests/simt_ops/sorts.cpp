// The twins of class_sort.cu and race_sort.cu, which need CUB: stable sorts in the same words.
#include <algorithm>
#include <numeric>
#include <vector>

#include "csrc/cuda/loss/class_list.h"
#include "csrc/cuda/sample/sample.h"

namespace ssc::cuda {
namespace {

template <class Key>
cudaError_t stable_sort_pairs(void* temporary, size_t& bytes, const Key* keys,
                              const int64_t* values, int64_t count, Key* sorted_keys,
                              int64_t* sorted_values) {
  if (temporary == nullptr) {
    bytes = 1;
    return cudaSuccess;
  }
  std::vector<size_t> places(static_cast<size_t>(count));
  std::iota(places.begin(), places.end(), size_t{0});
  std::stable_sort(places.begin(), places.end(),
                   [&](size_t a, size_t b) { return keys[a] < keys[b]; });
  for (size_t i = 0; i < places.size(); ++i) {
    sorted_keys[i] = keys[places[i]];
    sorted_values[i] = values[places[i]];
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t sort_classes(void* temporary, size_t& bytes, const int64_t* classes,
                         const int64_t* entries, int64_t count, int64_t /*num_classes*/,
                         int64_t* sorted_classes, int64_t* order, cudaStream_t /*stream*/) {
  return stable_sort_pairs(temporary, bytes, classes, entries, count, sorted_classes, order);
}

cudaError_t sort_arrivals(void* temporary, size_t& bytes, const double* times,
                          const int64_t* classes, int64_t rows, int64_t num_classes, double* sorted,
                          int64_t* order, cudaStream_t /*stream*/) {
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t first = row * race_stride(num_classes);
    stable_sort_pairs(temporary, bytes, times + first, classes + first, num_classes, sorted + first,
                      order + first);
  }
  return cudaSuccess;
}

}  // namespace ssc::cuda
