// The matrix unit's product of tiles does as Intel's manual says: the emulation to every bit, a CPU's
// own to the value; and the squares of tiles that kernels use put everything in its place.
#include <bit>
#include <random>
#include <vector>

#include "csrc/cpu/loss/table.h"
#include "tests/cpp/amx_tile_kernel.h"
#include "tests/cpp/check.h"

#if defined(__x86_64__)

namespace ssc::test {
namespace {

constexpr int kSide = 16;
constexpr int kWords = kSide * kSide;

bool available() { return isa_available(Isa::amx_bf16); }

float flush(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.f, x) : x; }

float element(uint32_t pair, int which) {
  return flush(std::bit_cast<float>(which == 0 ? pair << 16 : pair & 0xffff0000u));
}

// TDPBF16PS of one sum: fused multiply-adds of even and of odd elements apart, then additions;
// subnormal operands and results are zeros.
float model(float sum, const uint32_t* a, const uint32_t* b, int b_stride) {
  float parts[2] = {0, 0};
  for (int k = 0; k < kSide; ++k) {
    for (const int which : {0, 1}) {
      const uint32_t y = b[k * b_stride];
      parts[which] = flush(std::fma(element(a[k], which), element(y, which), parts[which]));
    }
  }
  return flush(flush(sum) + flush(parts[0] + parts[1]));
}

void check_sum(float got, float sum, const uint32_t* a, const uint32_t* b, int b_stride) {
  const float expected = model(sum, a, b, b_stride);
  if (isa_emulated(Isa::amx_bf16) && !std::isnan(expected)) {
    CHECK_EQ(std::bit_cast<uint32_t>(got), std::bit_cast<uint32_t>(expected));
    return;
  }
  double size = std::abs(static_cast<double>(sum)) + 1e-37;
  for (int k = 0; k < kSide; ++k) {
    for (const int which : {0, 1}) {
      size += std::abs(static_cast<double>(element(a[k], which)) * element(b[k * b_stride], which));
    }
  }
  if (!(size < 1e38)) return;  // infinite and NaN as the CPU likes
  CHECK_CLOSE(got, expected, size * 1e-6, 0);
}

using Random = std::mt19937;

uint32_t any_bits(Random& random) { return static_cast<uint32_t>(random()); }

// Exponents near 1, where additions round.
uint32_t near_one(Random& random) { return (any_bits(random) & 0x83ff83ffu) | 0x3c003c00u; }

template <class Draw>
void check_tiles(Draw&& draw) {
  std::vector<float> before(kWords), sum(kWords);
  std::vector<uint32_t> a(kWords), b(kWords);
  for (int i = 0; i < kWords; ++i) {
    before[static_cast<size_t>(i)] = sum[static_cast<size_t>(i)] = std::bit_cast<float>(draw());
    a[static_cast<size_t>(i)] = draw();
    b[static_cast<size_t>(i)] = draw();
  }
  multiply_tiles(sum.data(), a.data(), b.data());
  for (int i = 0; i < kSide; ++i) {
    for (int j = 0; j < kSide; ++j) {
      const auto at = static_cast<size_t>(i * kSide + j);
      check_sum(sum[at], before[at], a.data() + i * kSide, b.data() + j, kSide);
    }
  }
}

}  // namespace

TEST(products_of_random_tiles) {
  if (!available()) return;
  Random random(1);
  for (int i = 0; i < 100; ++i) {
    check_tiles([&] { return near_one(random); });
    check_tiles([&] { return any_bits(random) & 0xbfffbfffu; });  // subnormal ones, none infinite
    check_tiles([&] { return any_bits(random); });
  }
}

TEST(squares_have_their_tiles_in_place) {
  if (!available()) return;
  Random random(2);
  for (const int rows : {1, 2}) {
    for (const bool clear : {false, true}) {
      // The buffers end where the squares do: sanitizers see what lies behind.
      const auto sums = static_cast<size_t>(rows * kSide * 2 * kSide);
      std::vector<float> before(sums), sum(sums);
      std::vector<uint32_t> a(static_cast<size_t>(rows * kWords)), b(2 * kWords);
      for (size_t i = 0; i < sums; ++i) {
        sum[i] = std::bit_cast<float>(near_one(random));
        before[i] = clear ? 0 : sum[i];
      }
      for (uint32_t& word : a) word = near_one(random);
      for (uint32_t& word : b) word = near_one(random);
      multiply_squares(sum.data(), a.data(), b.data(), rows, clear);
      for (int i = 0; i < rows * kSide; ++i) {
        for (int j = 0; j < 2 * kSide; ++j) {
          const auto at = static_cast<size_t>(i * 2 * kSide + j);
          check_sum(sum[at], before[at], a.data() + i * kSide, b.data() + j, 2 * kSide);
        }
      }
    }
  }
}

TEST(tiles_are_for_bf16_and_for_float32_that_may_be_rounded) {
  if (!available()) return;
  for (const Products products : {Products::ieee, Products::tf32, Products::bf16}) {
    const auto fits = [&](DType dtype) {
      return dtype == DType::bf16 || (dtype == DType::f32 && products != Products::ieee);
    };
    for (const DType input : {DType::f32, DType::bf16, DType::f16}) {
      for (const DType weight : {DType::f32, DType::bf16, DType::f16}) {
        const bool tiles = fits(input) && fits(weight);
        const auto& kernels = loss_kernels<float>(Isa::amx_bf16, input, weight, products);
        CHECK_EQ(kernels.unit, tiles ? 32 : 1);
        const bool float32 = input == DType::f32 || weight == DType::f32;
        const bool parts = tiles && float32 && products == Products::tf32;
        CHECK_EQ(kernels.word, tiles && !parts ? 2 : 1);
        CHECK(tiles || &kernels == &loss_kernels<float>(Isa::avx512, input, weight));
      }
    }
  }
}

}  // namespace ssc::test

#endif
