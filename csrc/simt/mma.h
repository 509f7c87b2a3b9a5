// Twins of csrc/cuda/device/mma.h, which describes the fragments.
#pragma once

#include <bit>
#include <cstdint>

#include "csrc/simt/language.h"

namespace ssc::simt {

enum class MmaType : uint8_t { bf16, f16, tf32 };

void load_matrices(const Site* site, uint32_t* out, const void* row, int count, bool transposed);
void multiply_accumulate(const Site* site, MmaType type, float* d, const uint32_t* a,
                         const uint32_t* b);

}  // namespace ssc::simt

namespace ssc::cuda {

template <size_t kCount>
__forceinline__ void ldmatrix(uint32_t (&out)[kCount], const void* row) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
  simt::load_matrices(SSC_SIMT_SITE(), out, row, kCount, false);
}
template <size_t kCount>
__forceinline__ void ldmatrix_trans(uint32_t (&out)[kCount], const void* row) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
  simt::load_matrices(SSC_SIMT_SITE(), out, row, kCount, true);
}

__forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  simt::multiply_accumulate(SSC_SIMT_SITE(), simt::MmaType::bf16, d, a, b);
}
__forceinline__ void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  simt::multiply_accumulate(SSC_SIMT_SITE(), simt::MmaType::f16, d, a, b);
}
__forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  simt::multiply_accumulate(SSC_SIMT_SITE(), simt::MmaType::tf32, d, a, b);
}

// Nearest tf32 (10 bits of fraction), ties away from zero; NaN and infinity keep their kind.
__forceinline__ uint32_t to_tf32(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
  return (bits + 0x1000u) & 0xffffe000u;
}

}  // namespace ssc::cuda
