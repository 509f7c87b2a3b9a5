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

// Internal linkage: the kernels of every instruction set include this.
static inline float to_float(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float out;
  __builtin_memcpy(&out, &bits, 4);
  return out;
}

static inline float to_float(Float16 x) {
  // Shift the 5-bit exponent into place, then scale by 2^112: exact, subnormals included.
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  float out;
  if (magnitude >= 0x0f800000u) {  // inf and NaN keep their payload
    const uint32_t bits = sign | magnitude | 0x7f800000u;
    __builtin_memcpy(&out, &bits, 4);
    return out;
  }
  __builtin_memcpy(&out, &magnitude, 4);
  out *= 0x1p112f;
  uint32_t bits;
  __builtin_memcpy(&bits, &out, 4);
  bits |= sign;
  __builtin_memcpy(&out, &bits, 4);
  return out;
}

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
