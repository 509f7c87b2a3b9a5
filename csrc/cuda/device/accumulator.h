// What sums of a storage type are kept in; for host code too.
#pragma once

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
