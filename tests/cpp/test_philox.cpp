#include "csrc/core/philox.h"
#include "csrc/cpu/sample/table.h"
#include "tests/cpp/check.h"

namespace {

using ssc::PhiloxKey;
using ssc::PhiloxWords;
using ssc::ScalarLane;

struct KnownAnswer {
  uint32_t counter[4], key[2], expected[4];
};

// philox4x32 10 in kat_vectors of Random123 1.14 (D. E. Shaw Research).
constexpr KnownAnswer kKnownAnswers[] = {
    {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     {0xffffffff, 0xffffffff},
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xa4093822, 0x299f31d0},
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

}  // namespace

TEST(known_answers_of_random123) {
  for (const KnownAnswer& answer : kKnownAnswers) {
    const uint64_t seed = answer.key[0] | uint64_t{answer.key[1]} << 32;
    const PhiloxWords<uint64_t> words = ssc::philox4x32_10<ScalarLane>(
        {answer.counter[0], answer.counter[1], answer.counter[2], answer.counter[3]}, seed);
    CHECK_EQ(static_cast<uint32_t>(words.w0), answer.expected[0]);
    CHECK_EQ(static_cast<uint32_t>(words.w1), answer.expected[1]);
    CHECK_EQ(static_cast<uint32_t>(words.w2), answer.expected[2]);
    CHECK_EQ(static_cast<uint32_t>(words.w3), answer.expected[3]);
  }
}

TEST(a_draw_is_one_half_of_a_counter) {
  const PhiloxKey key{0, 0};
  CHECK_EQ(ssc::philox_draw(key, 0), 0xe169c58d6627e8d5u);
  CHECK_EQ(ssc::philox_draw(key, 1), 0x9b00dbd8bc57ac4cu);
  CHECK_EQ(ssc::philox_draw({0, 7}, 3), ssc::philox_draw({0, 8}, 1));
}

TEST(a_row_has_a_subsequence_of_its_own) {
  // Random123's answer for a counter of all ones under a key of all ones.
  const PhiloxKey key{~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0}};
  CHECK_EQ(ssc::philox_draw(key, 0), 0x41c83b0e408f276du);
  CHECK_EQ(ssc::row_key(key, 4).subsequence, 5u);
}

TEST(kernels_give_the_same_draws_from_any_place_and_length) {
  const ssc::SampleKernels& kernels = ssc::sample_kernels(ssc::active_isa());
  // The last offset makes the 64-bit counter wrap around.
  for (const PhiloxKey key :
       {PhiloxKey{0, 0}, PhiloxKey{~uint64_t{0}, 0x0123456789abcdef},
        PhiloxKey{0x5eed, ~uint64_t{0} - 3}, PhiloxKey{5, 6, uint64_t{7} << 32 | 8}}) {
    for (const uint64_t first : {uint64_t{0}, uint64_t{2}, uint64_t{1} << 33}) {
      for (const int64_t n : {0, 1, 2, 15, 16, 17, 63, 64, 65, 200}) {
        std::vector<uint64_t> bits(static_cast<size_t>(n));
        kernels.philox(key, first, n, bits.data());
        for (int64_t i = 0; i < n; ++i) {
          CHECK_EQ(bits[static_cast<size_t>(i)],
                   ssc::philox_draw(key, first + static_cast<uint64_t>(i)));
        }
      }
    }
  }
}
