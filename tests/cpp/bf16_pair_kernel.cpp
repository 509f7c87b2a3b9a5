// The two instructions under csrc/cpu/kernels/bf16_pair.h, or their emulation, for
// test_bf16_pair.cpp:
// compiled as the kernels are.
#include "tests/cpp/bf16_pair_kernel.h"

#include "csrc/cpu/kernels/word.h"
#if defined(__GNUC__) && !defined(__clang__)
// As in simd.h (GCC bug 105593): in functions this small the compiler is sure of it.
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace ssc::test {

void dot_pairs(float* sum, const uint32_t* a, const uint32_t* b) {
  using namespace SSC_ISA;
  const Words wa = words_of(_mm512_loadu_si512(a)), wb = words_of(_mm512_loadu_si512(b));
  store<float>(sum, SSC_ISA::dot_pairs(load(sum), wa, wb));
}

void round_to_pairs(const float* low, const float* high, uint16_t* out) {
  using namespace SSC_ISA;
  _mm512_storeu_si512(out, SSC_ISA::round_to_pairs(load(low), load(high)));
}

}  // namespace ssc::test
