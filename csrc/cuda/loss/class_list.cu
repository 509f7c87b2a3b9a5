// A thread per entry, 16 bytes written for each.
#include "csrc/cuda/device/grid.h"
#include "csrc/cuda/loss/class_list.h"

namespace ssc::cuda {
namespace {

__global__ void __launch_bounds__(kElementThreads)
    list_classes_kernel(const int64_t* ids, int64_t samples, const int64_t* target, int64_t batch,
                        int64_t num_classes, int64_t ignore_index, int64_t* classes,
                        int64_t* entries) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t e = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; e < samples + batch;
       e += stride) {
    const int64_t id = e < samples ? ids[e] : target[e - samples];
    const bool counts = e < samples || id != ignore_index;
    const bool inside = static_cast<uint64_t>(id) < static_cast<uint64_t>(num_classes);
    classes[e] = counts && inside ? id : num_classes;
    entries[e] = e;
  }
}

__global__ void __launch_bounds__(kElementThreads)
    number_classes_kernel(int64_t count, int64_t* out) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t c = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; c < count;
       c += stride) {
    out[c] = c;
  }
}

}  // namespace

cudaError_t number_classes(int64_t count, int64_t* out, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  return launch(number_classes_kernel, element_blocks(count), kElementThreads, 0, stream, count,
                out);
}

cudaError_t list_classes(const int64_t* ids, int64_t samples, const int64_t* target, int64_t batch,
                         int64_t num_classes, int64_t ignore_index, int64_t* classes,
                         int64_t* entries, cudaStream_t stream) {
  const int64_t count = samples + batch;
  if (count == 0) return cudaSuccess;
  return launch(list_classes_kernel, element_blocks(count), kElementThreads, 0, stream, ids,
                samples, target, batch, num_classes, ignore_index, classes, entries);
}

}  // namespace ssc::cuda
