// The matrix unit's instructions under csrc/cpu/kernels/amx_tile.h, or their emulation, for
// test_amx_tile.cpp: compiled as the kernels are.
#include "tests/cpp/amx_tile_kernel.h"

#include "csrc/cpu/kernels/amx_tile.h"
#if defined(__GNUC__) && !defined(__clang__)
// As in simd.h (GCC bug 105593): in functions this small the compiler is sure of it.
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace ssc::test {
namespace {

template <int kRows>
void multiply(float* sum, const float* a, const float* b, bool clear) {
  using namespace SSC_ISA;
  if (clear) {
    clear_square<kRows>();
  } else {
    load_square<kRows>(sum, 2 * kTileSide);
  }
  multiply_add_square<kRows>(a, a + kTileWords, b);
  store_square<kRows>(sum, 2 * kTileSide);
}

}  // namespace

void multiply_tiles(float* sum, const uint32_t* a, const uint32_t* b) {
  using namespace SSC_ISA;
  const TileRegisters registers;
  tile_load<5>(sum, kTileSide);
  tile_load<6>(reinterpret_cast<const float*>(a), kTileSide);
  tile_load<7>(reinterpret_cast<const float*>(b), kTileSide);
  tile_multiply<5, 6, 7>();
  tile_store<5>(sum, kTileSide);
}

void multiply_squares(float* sum, const uint32_t* a, const uint32_t* b, int rows, bool clear) {
  const SSC_ISA::TileRegisters registers;
  const auto* fa = reinterpret_cast<const float*>(a);
  const auto* fb = reinterpret_cast<const float*>(b);
  rows == 2 ? multiply<2>(sum, fa, fb, clear) : multiply<1>(sum, fa, fb, clear);
}

}  // namespace ssc::test
