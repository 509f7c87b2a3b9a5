// The sort of an exponential race (sample_race.h), by a library.
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrc/cuda/device.h"

namespace ssc::cuda {

// order [C]: the classes by rising time [C] >= 0, equal times in the order of the classes, and
// sorted [C]: their times. classes [C] is 0, 1, ... With `temporary` null nothing is sorted and
// `bytes` becomes the size of the memory that it has to point to.
cudaError_t sort_arrivals(void* temporary, size_t& bytes, const double* time,
                          const int64_t* classes, int64_t num_classes, double* sorted,
                          int64_t* order, cudaStream_t stream);

}  // namespace ssc::cuda
