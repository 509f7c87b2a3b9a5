// The sorted list of samples and targets by which class_grads (gradients.h) adds up each class:
// entry e < S is sample e, entry S + i the target of row i.
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrc/cuda/device/device.h"

namespace ssc::cuda {

// classes[e] = the class of entry e, entries[e] = e, both [S + B]. Targets to be ignored and ids
// outside [0, num_classes) get the class num_classes.
cudaError_t list_classes(const int64_t* ids, int64_t samples, const int64_t* target, int64_t batch,
                         int64_t num_classes, int64_t ignore_index, int64_t* classes,
                         int64_t* entries, cudaStream_t stream);

// Sorts a list of `count` < 2^31 entries by class, equal classes in the order that they had, so
// that the result is always the same. With `temporary` null nothing is sorted and `bytes` becomes
// the size of the memory that it has to point to.
cudaError_t sort_classes(void* temporary, size_t& bytes, const int64_t* classes,
                         const int64_t* entries, int64_t count, int64_t num_classes,
                         int64_t* sorted_classes, int64_t* order, cudaStream_t stream);

// out[c] = c, for gradients that have a row for every class.
cudaError_t number_classes(int64_t count, int64_t* out, cudaStream_t stream);

}  // namespace ssc::cuda
