// The two instructions under the kernels for pairs of bf16 do as Intel's manual says: the emulation
// to every bit, a CPU's own to the value.
#include <bit>
#include <random>

#include "csrc/cpu/loss/table.h"
#include "tests/cpp/bf16_pair_kernel.h"
#include "tests/cpp/check.h"

#if defined(__x86_64__)

namespace ssc::test {
namespace {

constexpr int kLanes = 16;

bool available() { return isa_available(Isa::avx512_bf16); }

float flush(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.f, x) : x; }

float element(uint32_t pair, int which) {
  return std::bit_cast<float>(which == 0 ? pair << 16 : pair & 0xffff0000u);
}

// VDPBF16PS: two fused multiply-adds to float, the upper elements' first; subnormal operands and
// results are zeros.
float model(float sum, uint32_t a, uint32_t b) {
  sum = flush(sum);
  for (const int which : {1, 0}) {
    sum = flush(std::fma(flush(element(a, which)), flush(element(b, which)), sum));
  }
  return sum;
}

void check_dot(float sum, uint32_t a, uint32_t b) {
  float sums[kLanes];
  uint32_t as[kLanes], bs[kLanes];
  std::fill_n(sums, kLanes, sum);
  std::fill_n(as, kLanes, a);
  std::fill_n(bs, kLanes, b);
  dot_pairs(sums, as, bs);
  const float expected = model(sum, a, b);
  const Note note(std::to_string(sum) + " + " + std::to_string(a) + " * " + std::to_string(b));
  for (const float got : sums) {
    if (isa_emulated(Isa::avx512_bf16) && !std::isnan(expected)) {
      CHECK_EQ(std::bit_cast<uint32_t>(got), std::bit_cast<uint32_t>(expected));
      continue;
    }
    double size = std::abs(static_cast<double>(sum)) + 1e-37;
    for (const int which : {0, 1})
      size += std::abs(static_cast<double>(element(a, which)) * element(b, which));
    if (!(size < 1e38)) continue;  // infinite and NaN as the CPU likes
    CHECK_CLOSE(got, expected, size * 2e-7, 0);
  }
}

}  // namespace

TEST(dot_of_random_pairs) {
  if (!available()) return;
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    // Any bits at all, and exponents near 1, where additions round.
    check_dot(std::bit_cast<float>(static_cast<uint32_t>(random())),
              static_cast<uint32_t>(random()), static_cast<uint32_t>(random()));
    const auto near_one = [&] {
      return (static_cast<uint32_t>(random()) & 0x83ff83ffu) | 0x3c003c00u;
    };
    check_dot(std::bit_cast<float>(near_one()), near_one(), near_one());
  }
}

TEST(dot_at_the_edges) {
  if (!available()) return;
  constexpr uint32_t kOne = 0x3f803f80, kSmallest = 0x00800080, kSubnormal = 0x00400040;
  check_dot(0, kOne, kOne);
  check_dot(1, 0xcb80'4b80u, kOne);     // 2^24 and −2^24 beside 1: the order shows
  check_dot(0, kSmallest, 0x3f003f00);  // a product that is subnormal
  check_dot(0, kSubnormal, 0x7f007f00);
  check_dot(1e-40f, kOne, 0);
  check_dot(-1e-40f, 0, 0);
  check_dot(1, 0x7f80'3f80u, kOne);
}

TEST(rounding_to_nearest_even) {
  if (!available()) return;
  std::mt19937 random(2);
  float low[kLanes], high[kLanes];
  uint16_t got[2 * kLanes];
  for (int i = 0; i < 2000; ++i) {
    for (float* side : {low, high}) {
      for (int lane = 0; lane < kLanes; ++lane) {
        uint32_t bits = static_cast<uint32_t>(random());
        if (lane % 2 == 0) bits = (bits & 0xffff0000u) | 0x8000u;  // halfway between two
        side[lane] = std::bit_cast<float>(bits);
      }
    }
    round_to_pairs(low, high, got);
    for (int lane = 0; lane < 2 * kLanes; ++lane) {
      const float x = flush(lane < kLanes ? low[lane] : high[lane - kLanes]);
      const auto bits = std::bit_cast<uint32_t>(x);
      const uint32_t rounded = std::isnan(x) ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1);
      CHECK_EQ(got[lane], static_cast<uint16_t>(rounded >> 16));
    }
  }
}

TEST(pairs_are_for_bf16_and_for_float32_that_may_be_rounded) {
  if (!available()) return;
  for (const Products products : {Products::ieee, Products::tf32, Products::bf16}) {
    const auto fits = [&](DType dtype) {
      return dtype == DType::bf16 || (dtype == DType::f32 && products == Products::bf16);
    };
    for (const DType input : {DType::f32, DType::bf16, DType::f16}) {
      for (const DType weight : {DType::f32, DType::bf16, DType::f16}) {
        const bool pairs = fits(input) && fits(weight);
        const auto& kernels = loss_kernels<float>(Isa::avx512_bf16, input, weight, products);
        CHECK_EQ(kernels.word, pairs ? 2 : 1);
        CHECK(pairs || &kernels == &loss_kernels<float>(Isa::avx512, input, weight));
        CHECK_EQ(loss_kernels<float>(Isa::avx512, input, weight, products).word, 1);
      }
    }
  }
}

}  // namespace ssc::test

#endif
