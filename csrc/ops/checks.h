// Checks of single tensors that protect memory, the same on every device.
#pragma once

#include <cstdint>

#include "csrc/core/products.h"
#include "csrc/ops/stable.h"

namespace ssc::ops {

inline bool is_double(const Tensor& t) { return t.scalar_type() == ScalarType::Double; }

inline const Tensor& check_matrix(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() == 2, name, " must have 2 dimensions, has ", t.dim());
  STD_TORCH_CHECK(t.stride(1) == 1 || t.size(1) <= 1, name, "'s rows must be contiguous");
  return t;
}

inline Tensor contiguous_vector(const Tensor& t, int64_t size, const char* name) {
  STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == size, name, " must have shape [", size, "]");
  return torch::stable::contiguous(t);
}

inline Products products_of(int64_t number) {
  STD_TORCH_CHECK(number >= 0 && number <= static_cast<int64_t>(Products::bf16),
                  "products must be 0, 1 or 2, got ", number);
  return static_cast<Products>(number);
}

inline const int64_t* integers(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Long, name, " must be int64");
  return static_cast<const int64_t*>(t.data_ptr());
}

inline void check_int64(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Long && tensor.is_contiguous(), name,
                  " must be a contiguous int64 tensor");
}

}  // namespace ssc::ops
