// How float32 numbers may be multiplied in matmuls: PyTorch's own setting for the device
// (`fp32_precision`), which the operators take as a number.
#pragma once

#include <cstdint>

namespace ssc {

enum class Products : int64_t {
  ieee,  // as float32
  tf32,  // factors rounded to tf32, by the tensor cores of a GPU; in two parts of bf16, by AMX
  bf16,  // factors rounded to bf16, by a CPU's units for it
};

}  // namespace ssc
