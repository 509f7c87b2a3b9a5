// The arithmetic of csrc/core/row_update.h: products, quotients and roots rounded one by one, which
// nvcc would contract otherwise. g++ has -ffp-contract=off for csrc/simt.
#pragma once

#include "csrc/core/host_device.h"

namespace ssc::cuda {

struct Arithmetic {
#if defined(__CUDA_ARCH__)
  SSC_HD float mul(float a, float b) { return __fmul_rn(a, b); }
  SSC_HD double mul(double a, double b) { return __dmul_rn(a, b); }
  SSC_HD float div(float a, float b) { return __fdiv_rn(a, b); }
  SSC_HD double div(double a, double b) { return __ddiv_rn(a, b); }
  SSC_HD float root(float x) { return __fsqrt_rn(x); }
  SSC_HD double root(double x) { return __dsqrt_rn(x); }
#else
  template <class T>
  SSC_HD T mul(T a, T b) {
    return a * b;
  }
  template <class T>
  SSC_HD T div(T a, T b) {
    return a / b;
  }
  SSC_HD float root(float x) { return __builtin_sqrtf(x); }
  SSC_HD double root(double x) { return __builtin_sqrt(x); }
#endif
};

}  // namespace ssc::cuda
