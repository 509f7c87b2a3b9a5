// How long draws are repeated until enough of them will do. A valid proposal always gets there long
// before; one whose draws don't follow its probabilities (a table that was never filled, say) must
// not loop for ever.
#pragma once

#include <cstdint>

#include "csrc/core/host_device.h"

namespace ssc {

// The least part of the probability that a row's exclusions must leave: where draws are repeated
// until one is not excluded, and where only n depends on it, to within 1e-6.
constexpr double kLeastLeft = 1e-6;
constexpr double kLeastLeftDistinct = 1e-10;

// For `samples` draws that are not excluded, each one with the chance `left`. Half of these would
// be expected to do: the odds against that are those of 128 or more chances in vain.
SSC_HD double most_draws(int64_t samples, double left) {
  return (2.0 * static_cast<double>(samples) + 128.0) / left;
}

// For distinct classes. Python sends what needs more than a few draws per class to the race.
SSC_HD double most_distinct_draws(uint64_t num_classes) {
  return 1e6 + 1e3 * static_cast<double>(num_classes);
}

}  // namespace ssc
