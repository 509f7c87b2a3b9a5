// The matrix unit of Intel's Xeons (AMX) for pairs of bf16: eight registers of 16 rows by 16 words,
// and the product of two of them, added in float to a third. Registers are template arguments, since
// an instruction names them; strides are in words.
//
// Compilers know no value that lies in such a register. So a function that uses them loads, multiplies
// and stores, and calls nothing in between that uses them too; and each of these statements is one
// about memory, in the order of the source.
//
// A build for tests (SSC_EMULATE_AMX in CMakeLists.txt) replaces the instructions by what Intel's
// manual says they do, so that every other line runs on any CPU with AVX-512, and the sanitizers see
// which memory is read and written.
#pragma once

#include "csrc/cpu/kernels/bf16_pair.h"

namespace ssc::SSC_ISA {

constexpr int kTileSide = 16;  // rows of a tile, and words of a row
constexpr int kTileWords = kTileSide * kTileSide;

#if !defined(SSC_EMULATE_AMX)

// All eight registers are whole tiles for this thread, as long as this lives.
class TileRegisters {
 public:
  TileRegisters() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~TileRegisters() { asm volatile("tilerelease" :::); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

template <int kRegister>
SSC_INLINE void tile_load(const float* p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(4 * stride), "i"(kRegister)
               : "memory");
}

template <int kRegister>
SSC_INLINE void tile_store(float* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(4 * stride), "i"(kRegister)
               : "memory");
}

template <int kRegister>
SSC_INLINE void tile_clear() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kRegister) : "memory");
}

// sum[i][j] += Σ_k of both products of a[i][k] and b[k][j].
template <int kSum, int kA, int kB>
SSC_INLINE void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kA), "i"(kB) : "memory");
}

#else

#if defined(__GNUC__) && !defined(__clang__)
// As in simd.h (GCC bug 105593), where all of a product is in sight.
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

// Each source and each thread has its own.
static thread_local Words t_tiles[8][kTileSide];

class TileRegisters {
 public:
  TileRegisters() { std::memset(static_cast<void*>(t_tiles), 0, sizeof t_tiles); }
  ~TileRegisters() {}
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

template <int kRegister>
SSC_INLINE void tile_load(const float* p, int64_t stride) {
  for (int i = 0; i < kTileSide; ++i) t_tiles[kRegister][i] = load(p + i * stride);
}

template <int kRegister>
SSC_INLINE void tile_store(float* p, int64_t stride) {
  for (int i = 0; i < kTileSide; ++i) store(p + i * stride, t_tiles[kRegister][i]);
}

template <int kRegister>
SSC_INLINE void tile_clear() {
  for (int i = 0; i < kTileSide; ++i) t_tiles[kRegister][i] = Words{};
}

// The products of even and of odd elements are summed apart, each by fused multiply-adds, and their
// sum is added at last; subnormal numbers are zeros throughout.
template <int kSum, int kA, int kB>
SSC_INLINE void tile_multiply() {
  const auto flushed = [](Words v) { return (Words)flush_subnormal(bits_of(v)); };
  const auto even = [&](Words v) { return flushed(words_of(_mm512_slli_epi32(bits_of(v), 16))); };
  const auto odd = [&](Words v) {
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return flushed(words_of(_mm512_and_si512(bits_of(v), upper)));
  };
  const auto multiply_add = [&](Words a, Words b, Words sum) {
    return flushed((Words)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum));
  };
  for (int i = 0; i < kTileSide; ++i) {
    Words sums[2] = {Words{}, Words{}};
    for (int k = 0; k < kTileSide; ++k) {
      const Words a = splat(t_tiles[kA][i][k]), b = t_tiles[kB][k];
      sums[0] = multiply_add(even(a), even(b), sums[0]);
      sums[1] = multiply_add(odd(a), odd(b), sums[1]);
    }
    const Words products = flushed((Words)_mm512_add_ps((__m512)sums[0], (__m512)sums[1]));
    const __m512 sum = (__m512)flushed(t_tiles[kSum][i]);
    t_tiles[kSum][i] = flushed((Words)_mm512_add_ps(sum, (__m512)products));
  }
}

#endif

// A square of 2 x 2 tiles: sums in registers 0 to 3, of rows (0, 1), (2, 3). kRows: of 1 or 2 tiles.

template <int kRows>
SSC_INLINE void clear_square() {
  tile_clear<0>();
  tile_clear<1>();
  if constexpr (kRows == 2) {
    tile_clear<2>();
    tile_clear<3>();
  }
}

template <int kRows>
SSC_INLINE void load_square(const float* p, int64_t stride) {
  tile_load<0>(p, stride);
  tile_load<1>(p + kTileSide, stride);
  if constexpr (kRows == 2) {
    tile_load<2>(p + kTileSide * stride, stride);
    tile_load<3>(p + kTileSide * stride + kTileSide, stride);
  }
}

template <int kRows>
SSC_INLINE void store_square(float* p, int64_t stride) {
  tile_store<0>(p, stride);
  tile_store<1>(p + kTileSide, stride);
  if constexpr (kRows == 2) {
    tile_store<2>(p + kTileSide * stride, stride);
    tile_store<3>(p + kTileSide * stride + kTileSide, stride);
  }
}

// The square's sums += a b: b's tiles side by side in lines of 32 words, a's tiles at a and a_next,
// in lines of a_stride words.
template <int kRows>
SSC_INLINE void multiply_add_square(const float* a, const float* a_next, const float* b,
                                    int64_t a_stride = kTileSide) {
  tile_load<4>(a, a_stride);
  tile_load<6>(b, 2 * kTileSide);
  tile_load<7>(b + kTileSide, 2 * kTileSide);
  tile_multiply<0, 4, 6>();
  tile_multiply<1, 4, 7>();
  if constexpr (kRows == 2) {
    tile_load<5>(a_next, a_stride);
    tile_multiply<2, 5, 6>();
    tile_multiply<3, 5, 7>();
  } else {
    static_cast<void>(a_next);
  }
}

// Where a square's operand a lies, in words: the distances of its lines, of its two tiles, and of its
// parts.
struct SquareRows {
  int64_t line, tile, part;
};

// The square's sums += a b, of the products of parts all but those of the second with the second.
// b's second part follows the first.
template <int kRows>
SSC_INLINE void multiply_add_parts(const float* a, SquareRows at, const float* b) {
  if constexpr (kParts == 2) {
    multiply_add_square<kRows>(a, a + at.tile, b + 2 * kTileWords, at.line);
    multiply_add_square<kRows>(a + at.part, a + at.part + at.tile, b, at.line);
  }
  multiply_add_square<kRows>(a, a + at.tile, b, at.line);
}

}  // namespace ssc::SSC_ISA
