// The loops in registers of roof.cpp: multiply-adds of each instruction set, and random bits.
#pragma once

#include <cstdint>
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace {

// --- Arithmetic: independent multiply-add chains held in registers ------------------------------
// 4 cycles of latency on 2 ports need 8 chains; 12 leave room for a port that is late.
constexpr int kChains = 12;

volatile float g_sink;  // keeps the results alive

#define SSC_REPEAT12(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define SSC_DECLARE(i) V acc##i = seed + static_cast<float>(i);
#define SSC_STEP(i) acc##i = STEP(acc##i);
#define SSC_KEEP(i) asm volatile("" : "+" VREG(acc##i));
#define SSC_SUM(i) total += acc##i;
#define SSC_FMA_LOOP()                                       \
  SSC_REPEAT12(SSC_DECLARE)                                  \
  for (int64_t i = 0; i < iterations; ++i) {                 \
    SSC_REPEAT12(SSC_STEP)                                   \
    SSC_REPEAT12(SSC_KEEP) /* no iteration may be skipped */ \
  }                                                          \
  V total = seed - seed;                                     \
  SSC_REPEAT12(SSC_SUM)                                      \
  g_sink = total[0];

#if defined(__x86_64__)
#define VREG(v) "v"(v)
#else
#define VREG(v) "w"(v)
#endif

// Baseline: 4 lanes, a multiply and an add (x86-64 has no fused one; other CPUs may contract it).
void fma_scalar(int64_t iterations) {
  typedef float V __attribute__((vector_size(16)));
  V seed = {1e-3f, 2e-3f, 3e-3f, 4e-3f};
  V factor = seed * 0.5f;
#define STEP(acc) (acc * factor + seed)
  SSC_FMA_LOOP()
#undef STEP
}

#if defined(__x86_64__)
#undef VREG
#define VREG(v) "x"(v)
__attribute__((target("avx2,fma"))) void fma_avx2(int64_t iterations) {
  using V = __m256;
  const V seed = _mm256_set1_ps(1e-3f);
  const V factor = _mm256_set1_ps(0.5f);
#define STEP(acc) _mm256_fmadd_ps(acc, factor, seed)
  SSC_FMA_LOOP()
#undef STEP
}

#undef VREG
#define VREG(v) "v"(v)
__attribute__((target("avx512f"))) void fma_avx512(int64_t iterations) {
  using V = __m512;
  const V seed = _mm512_set1_ps(1e-3f);
  const V factor = _mm512_set1_ps(0.5f);
#define STEP(acc) _mm512_fmadd_ps(acc, factor, seed)
  SSC_FMA_LOOP()
#undef STEP
}

#if defined(__GNUC__) && (__GNUC__ >= 10)
#define SSC_HAVE_BF16_INTRINSICS 1
__attribute__((target("avx512f,avx512bf16"))) void fma_avx512_bf16(int64_t iterations) {
  using V = __m512;
  const V seed = _mm512_set1_ps(1e-3f);
  const __m512bh factor = _mm512_cvtne2ps_pbh(seed, seed);
#define STEP(acc) _mm512_dpbf16_ps(acc, factor, factor)
  SSC_FMA_LOOP()
#undef STEP
}
#endif

#if defined(__linux__)
#define SSC_HAVE_TILES 1
// The matrix unit: a product takes 52 cycles and one starts every 16, so six sums keep it busy.
constexpr int kTileSums = 6;
constexpr double kTileWork = 16 * 16 * 32 * 2.0;  // multiplies and adds of a product

void tiles_amx_bf16(int64_t iterations) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  asm volatile("ldtilecfg %0" ::"m"(config));  // and zeros in all tiles
  for (int64_t i = 0; i < iterations; ++i) {
    asm volatile(
        "tdpbf16ps %tmm7, %tmm6, %tmm0\n\t"
        "tdpbf16ps %tmm7, %tmm6, %tmm1\n\t"
        "tdpbf16ps %tmm7, %tmm6, %tmm2\n\t"
        "tdpbf16ps %tmm7, %tmm6, %tmm3\n\t"
        "tdpbf16ps %tmm7, %tmm6, %tmm4\n\t"
        "tdpbf16ps %tmm7, %tmm6, %tmm5");
  }
  asm volatile("tilerelease");
}

// Whether the CPU has tiles and the kernel grants this process their registers.
bool tiles_granted() {
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;  // CPUID 7, EDX
  constexpr int kRequestPermission = 0x1023, kTileData = 18;    // ARCH_REQ_XCOMP_PERM
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & kAmxBf16) && (edx & kAmxTile) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif
#endif

// --- Random bits: Philox4x32-10 in registers -----------------------------------------------------
// Counters in 64-bit lanes, kStreams vectors of them in flight; the words are summed, not stored.
constexpr int kStreams = 4;
constexpr uint64_t kPhiloxMul[2] = {0xD2511F53, 0xCD9E8D57};
constexpr uint32_t kPhiloxWeyl[2] = {0x9E3779B9, 0xBB67AE85};

// U: a vector of uint64_t; MUL: the products of its lanes' low halves.
#define SSC_PHILOX_LOOP(U, MUL)                                                         \
  const U m0 = U{} + kPhiloxMul[0], m1 = U{} + kPhiloxMul[1];                           \
  U sum = {};                                                                           \
  for (int64_t i = 0; i < iterations; ++i) {                                            \
    U w0[kStreams], w1[kStreams], w2[kStreams], w3[kStreams];                           \
    for (int s = 0; s < kStreams; ++s) {                                                \
      w0[s] = U{} + static_cast<uint64_t>(i * kStreams + s);                            \
      w1[s] = w2[s] = w3[s] = U{};                                                      \
    }                                                                                   \
    _Pragma("GCC unroll 10") for (int round = 0; round < 10; ++round) {                 \
      const U key0 = U{} + uint64_t{7 + static_cast<uint32_t>(round) * kPhiloxWeyl[0]}; \
      const U key1 = U{} + uint64_t{9 + static_cast<uint32_t>(round) * kPhiloxWeyl[1]}; \
      for (int s = 0; s < kStreams; ++s) {                                              \
        const U p0 = (U)MUL(w0[s], m0), p1 = (U)MUL(w2[s], m1);                         \
        w0[s] = (p1 >> 32) ^ w1[s] ^ key0;                                              \
        w2[s] = (p0 >> 32) ^ w3[s] ^ key1;                                              \
        w1[s] = p1;                                                                     \
        w3[s] = p0;                                                                     \
      }                                                                                 \
    }                                                                                   \
    for (int s = 0; s < kStreams; ++s) sum += w0[s] ^ w1[s] ^ w2[s] ^ w3[s];            \
  }                                                                                     \
  g_sink = static_cast<float>(sum[0]);

typedef uint64_t U2 __attribute__((vector_size(16)));
#if defined(__x86_64__)
#define SSC_MUL_BASE(a, b) _mm_mul_epu32((__m128i)(a), (__m128i)(b))
#else
#define SSC_MUL_BASE(a, b) (((a) & 0xFFFFFFFFu) * (b))
#endif
void philox_scalar(int64_t iterations) { SSC_PHILOX_LOOP(U2, SSC_MUL_BASE) }

#if defined(__x86_64__)
typedef uint64_t U4 __attribute__((vector_size(32)));
typedef uint64_t U8 __attribute__((vector_size(64)));
#define SSC_MUL_AVX2(a, b) _mm256_mul_epu32((__m256i)(a), (__m256i)(b))
#define SSC_MUL_AVX512(a, b) _mm512_mul_epu32((__m512i)(a), (__m512i)(b))
__attribute__((target("avx2"))) void philox_avx2(int64_t iterations) {
  SSC_PHILOX_LOOP(U4, SSC_MUL_AVX2)
}
__attribute__((target("avx512f"))) void philox_avx512(int64_t iterations) {
  SSC_PHILOX_LOOP(U8, SSC_MUL_AVX512)
}
#endif

struct Loop {
  void (*run)(int64_t);
  double work_per_iteration;  // multiplies and adds counted apart; or 64-bit random numbers
};

// In the order of roof.py's KINDS. `run` is null where the CPU or the compiler lacks the
// instructions.
Loop loop_of(int kind) {
  constexpr double kNumbers = kStreams * 2;
  if (kind == 0) return {fma_scalar, kChains * 4 * 2.0};
  if (kind == 5) return {philox_scalar, kNumbers * 2};
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f");
  if (kind == 1 && avx2) return {fma_avx2, kChains * 8 * 2.0};
  if (kind == 2 && avx512) return {fma_avx512, kChains * 16 * 2.0};
  if (kind == 6 && avx2) return {philox_avx2, kNumbers * 4};
  if (kind == 7 && avx512) return {philox_avx512, kNumbers * 8};
#if defined(SSC_HAVE_BF16_INTRINSICS)
  if (kind == 3 && __builtin_cpu_supports("avx512bf16"))
    return {fma_avx512_bf16, kChains * 32 * 2.0};
#endif
#if defined(SSC_HAVE_TILES)
  if (kind == 4 && tiles_granted()) return {tiles_amx_bf16, kTileSums * kTileWork};
#endif
#endif
  return {nullptr, 0};
}

}  // namespace
