// The sort of exponential races (sample_race.h), by a library.
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrc/cuda/device.h"

namespace ssc::cuda {

// Of each row, order: the classes by rising time >= 0, equal times in the order of the classes, and
// sorted: their times. classes is 0, 1, ... All are [rows][race_stride(C)], of which the first C
// are sorted; rows · stride < 2^31 unless there is one row. With `temporary` null nothing is sorted
// and `bytes` becomes the size of the memory that it has to point to.
cudaError_t sort_arrivals(void* temporary, size_t& bytes, const double* times,
                          const int64_t* classes, int64_t rows, int64_t num_classes, double* sorted,
                          int64_t* order, cudaStream_t stream);

}  // namespace ssc::cuda
