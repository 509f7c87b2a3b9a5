// The storage types that kernels are compiled for, and the types of their sums; for host code too.
#pragma once

// M(type); for each of them.
#define SSC_FOR_TYPES(M) \
  M(float);              \
  M(double);             \
  M(__nv_bfloat16);      \
  M(__half)

namespace ssc::cuda {

template <class T>
struct AccumulatorOf {
  using Type = float;
};
template <>
struct AccumulatorOf<double> {
  using Type = double;
};

}  // namespace ssc::cuda
