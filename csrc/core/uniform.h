// Bounded integers without modulo: the high half of x * n, x uniform over 64 bits. Each of the n
// results gets floor or ceil(2^64 / n) values of x, so no probability is off by more than 2^-64.
// Lemire, "Fast random integer generation in an interval", 2019, https://arxiv.org/abs/1805.10941
#pragma once

#include "csrc/core/lane.h"

namespace ssc {

template <class L, bool kNarrow>
SSC_HD typename L::U uniform_id(typename L::U x, uint64_t num_classes) {
  return L::template mul_wide<kNarrow>(x, num_classes).high;
}

}  // namespace ssc
