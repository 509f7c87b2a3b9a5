// The twin of csrc/cuda/class_sort.cu, which needs CUB: a stable sort in the same words.
#include <algorithm>
#include <numeric>
#include <vector>

#include "csrc/cuda/class_list.h"

namespace ssc::cuda {

cudaError_t sort_classes(void* temporary, size_t& bytes, const int64_t* classes,
                         const int64_t* entries, int64_t count, int64_t /*num_classes*/,
                         int64_t* sorted_classes, int64_t* order, cudaStream_t /*stream*/) {
  if (temporary == nullptr) {
    bytes = 1;
    return cudaSuccess;
  }
  std::vector<int64_t> places(static_cast<size_t>(count));
  std::iota(places.begin(), places.end(), int64_t{0});
  std::stable_sort(places.begin(), places.end(),
                   [&](int64_t a, int64_t b) { return classes[a] < classes[b]; });
  for (int64_t i = 0; i < count; ++i) {
    sorted_classes[i] = classes[places[static_cast<size_t>(i)]];
    order[i] = entries[places[static_cast<size_t>(i)]];
  }
  return cudaSuccess;
}

}  // namespace ssc::cuda
