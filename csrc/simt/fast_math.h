// Twins of csrc/cuda/device/fast_math.h: computed in double, rounded once, denormals flushed.
#pragma once

#include <cmath>

#include "csrc/simt/language.h"

namespace ssc::simt {

inline float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

}  // namespace ssc::simt

namespace ssc::cuda {

inline float fast_exp2(float x) {
  return simt::flush(static_cast<float>(std::exp2(static_cast<double>(simt::flush(x)))));
}
inline float fast_log2(float x) {
  return static_cast<float>(std::log2(static_cast<double>(simt::flush(x))));
}

}  // namespace ssc::cuda
