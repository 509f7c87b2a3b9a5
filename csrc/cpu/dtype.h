// Element types that tensors may have. Arithmetic is done in float (double for f64): the 16-bit
// types are only loaded and stored.
#pragma once

#include <cstdint>

namespace ssc {

enum class DType { f32, f64, bf16, f16 };

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

constexpr int64_t element_size(DType dtype) {
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

// A borrowed matrix [rows, columns] whose rows are `stride` elements apart.
struct MatrixView {
  const void* data;
  int64_t stride;
  DType dtype;

  const char* row(int64_t i) const {
    return static_cast<const char*>(data) + i * stride * element_size(dtype);
  }
};

// A borrowed contiguous vector; data may be null.
struct Vector {
  const void* data;
  DType dtype;
};

}  // namespace ssc
