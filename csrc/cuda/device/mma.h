// ldmatrix and mma.sync, one function per instruction. All lanes of a warp execute them together.
//
// Fragments of m16n8k16 (16-bit inputs), with group = lane / 4 and pair = lane % 4 (PTX ISA,
// "Matrix Fragments for mma.m16n8k16 with floating point type"); lower half = lower column or row:
//   A (16x16, row): a[0] = A[group][2 pair, +1]      a[1] = A[group + 8][2 pair, +1]
//                   a[2] = A[group][2 pair + 8, +9]  a[3] = A[group + 8][2 pair + 8, +9]
//   B (16x8, col):  b[0] = B[2 pair, +1][group]      b[1] = B[2 pair + 8, +9][group]
//   C, D (16x8):    c[0,1] = C[group][2 pair, +1]    c[2,3] = C[group + 8][2 pair, +1]
// and of m16n8k8 with tf32 ("Matrix Fragments for mma.m16n8k8"):
//   A (16x8): a[0] = A[group][pair], a[1] = A[group + 8][pair], a[2] = A[group][pair + 4],
//             a[3] = A[group + 8][pair + 4]
//   B (8x8):  b[0] = B[pair][group], b[1] = B[pair + 4][group]
#pragma once

#include <stdint.h>

#include "csrc/cuda/device/device.h"

#if defined(SSC_SIMT)
#include "csrc/simt/mma.h"
#else
namespace ssc::cuda {

// 8x8 matrices of 16-bit numbers from shared memory. Lane 8 m + r gives the address of row r of
// matrix m (16-byte aligned; with fewer than four matrices the other lanes' addresses are unused);
// out[m] of a lane holds row lane / 4, columns 2 (lane % 4) and + 1 of matrix m. Transposed: of the
// transposed matrix. PTX ISA, "Warp-level matrix load instruction: ldmatrix".
__device__ __forceinline__ void ldmatrix(uint32_t (&out)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(out[0])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}
__device__ __forceinline__ void ldmatrix(uint32_t (&out)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(out[0]), "=r"(out[1])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}
__device__ __forceinline__ void ldmatrix(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_trans(uint32_t (&out)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(out[0])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_trans(uint32_t (&out)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(out[0]), "=r"(out[1])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_trans(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}

// d += A B, float32 accumulators. PTX ISA, "Multiply-and-Accumulate Instruction: mma". 7.5 has none
// of these shapes: there a kernel must not reach them, and one that does traps.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define SSC_MMA_ASM(instruction)                                                              \
  asm volatile(instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                               \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#else
#define SSC_MMA_ASM(instruction) ((void)d, (void)a, (void)b, __trap())
#endif

__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
  SSC_MMA_ASM("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32");
}
__device__ __forceinline__ void mma_f16(float (&d)[4], const uint32_t (&a)[4],
                                        const uint32_t (&b)[2]) {
  SSC_MMA_ASM("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32");
}
// Inputs are float32 bits rounded by to_tf32 (the instruction ignores the low 13 bits).
__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
  SSC_MMA_ASM("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32");
}
#undef SSC_MMA_ASM

// Nearest tf32, ties away from zero. PTX ISA, "Data Movement and Conversion Instructions: cvt".
__device__ __forceinline__ uint32_t to_tf32(float x) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#else
  return __float_as_uint(x);
#endif
}

}  // namespace ssc::cuda
#endif
