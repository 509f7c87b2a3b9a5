// Lanes: what an algorithm of csrc/core is written over, so that one source gives the same bits one
// number at a time (here, on host and device) and many at a time (csrc/cpu/kernels/lane.h).
//
// A lane L has the types L::U (unsigned 64-bit) and L::F (double), scalars or vectors, which take
// the usual operators and `mask ? a : b`, and the static functions below. Two rules keep the bits
// equal everywhere: every product goes through mul or mul_add, which round the product and the sum
// apart (nvcc would contract a bare a * b + c into an fma, which PyTorch's own operators cannot
// express), and nothing calls libm.
#pragma once

#include <cstdint>
#include <cstring>

#include "csrc/core/host_device.h"

namespace ssc {

// A 128-bit product.
template <class U>
struct Product {
  U high, low;
};

struct ScalarLane {
  using U = uint64_t;
  using F = double;

  SSC_HD U splat(uint64_t x) { return x; }
  SSC_HD F splat(double x) { return x; }

  // The product of the low 32 bits of a and of b.
  SSC_HD U mul_low32(U a, U b) {
    return static_cast<uint64_t>(static_cast<uint32_t>(a)) * static_cast<uint32_t>(b);
  }

  // x * c in 128 bits. kNarrow promises c < 2^32, which is cheaper for vectors.
  template <bool kNarrow>
  SSC_HD Product<U> mul_wide(U x, uint64_t c) {
#if defined(__CUDA_ARCH__)
    return {__umul64hi(x, c), x * c};
#else
    __extension__ using Wide = unsigned __int128;
    const Wide product = static_cast<Wide>(x) * c;
    return {static_cast<uint64_t>(product >> 64), static_cast<uint64_t>(product)};
#endif
  }

  SSC_HD F mul(F a, F b) {
#if defined(__CUDA_ARCH__)
    return __dmul_rn(a, b);
#else
    return a * b;
#endif
  }

  // a * b rounded, plus c rounded.
  SSC_HD F mul_add(F a, F b, F c) {
#if defined(__CUDA_ARCH__)
    return __dadd_rn(__dmul_rn(a, b), c);
#else
    return a * b + c;
#endif
  }

  SSC_HD U as_bits(F x) {
#if defined(__CUDA_ARCH__)
    return static_cast<uint64_t>(__double_as_longlong(x));
#else
    U bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return bits;
#endif
  }

  SSC_HD F as_float(U bits) {
#if defined(__CUDA_ARCH__)
    return __longlong_as_double(static_cast<long long>(bits));
#else
    F x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
#endif
  }

  // table[index % 16]
  SSC_HD F lookup16(const double* table, U index) { return table[index & 15]; }

  SSC_HD U gather(const uint64_t* table, U index) { return table[index]; }
};

constexpr uint64_t kLow32 = 0xffffffffu;
constexpr uint64_t kFractionMask = 0x000fffffffffffffu;
constexpr uint64_t kOneBits = 0x3ff0000000000000u;    // 1.0
constexpr uint64_t kTwo52Bits = 0x4330000000000000u;  // 2^52

// x < 2^52 as a double, exact: its bits are the fraction of 2^52 + x.
template <class L>
SSC_HD typename L::F to_float(typename L::U x) {
  return L::as_float(x | kTwo52Bits) - 0x1p52;
}

}  // namespace ssc
