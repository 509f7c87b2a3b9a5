#include "csrc/cpu/sample_alias.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "csrc/core/alias_table.h"

namespace ssc {
namespace {

// Probabilities as integers, in units in which a bucket holds 2^(64 - b) and all C buckets just
// under 2^64. The rounding error is carried from class to class, so no class is off by more than a
// unit; what float64 itself lost, 2^-52 of the total or so, goes to the largest class. A positive
// probability keeps at least one unit, so that every such class can be drawn.
std::vector<uint64_t> integer_weights(const double* probabilities, uint64_t num_classes,
                                      uint64_t bucket) {
  const double scale = static_cast<double>(num_classes) * static_cast<double>(bucket);
  std::vector<uint64_t> weights(num_classes);
  double carry = 0.0;
  uint64_t sum = 0;  // modulo 2^64
  uint64_t largest = 0;
  for (uint64_t k = 0; k < num_classes; ++k) {
    if (probabilities[k] == 0.0) continue;
    const double wanted = probabilities[k] * scale + carry;
    const double given = std::max(std::nearbyint(wanted), 1.0);
    carry = wanted - given;
    weights[k] = static_cast<uint64_t>(given);
    sum += weights[k];
    if (weights[k] > weights[largest]) largest = k;
  }
  weights[largest] += num_classes * bucket - sum;
  return weights;
}

}  // namespace

// Vose's construction without work lists (Hübschle-Schneider and Sanders 2019,
// https://arxiv.org/abs/1903.00227): one index sweeps the classes that are too small for a bucket,
// one those that are larger and fill up the former; a large class that has given enough away is
// filled up by the next one. Integers throughout, so nothing is left over at the end.
void build_alias_table(const double* probabilities, uint64_t num_classes, uint64_t* entries) {
  const int bits = alias_bits(num_classes);
  const uint64_t bucket = uint64_t{1} << (64 - bits);
  const std::vector<uint64_t> weights = integer_weights(probabilities, num_classes, bucket);
  const auto next_small = [&](uint64_t k) {
    while (k < num_classes && weights[k] >= bucket) ++k;
    return k;
  };
  const auto next_large = [&](uint64_t k) {
    while (k < num_classes && weights[k] < bucket) ++k;
    return k;
  };
  uint64_t small = next_small(0);
  uint64_t large = next_large(0);
  uint64_t given = 0;  // what `large` has given away to the large class before it
  while (large < num_classes) {
    uint64_t left = weights[large] - given;
    for (; left > bucket && small < num_classes; small = next_small(small + 1)) {
      entries[small] = (weights[small] << bits) | large;
      left -= bucket - weights[small];
    }
    const uint64_t next = next_large(large + 1);
    const bool full = left >= bucket || next == num_classes;
    entries[large] = full ? large : (left << bits) | next;
    given = full ? 0 : bucket - left;
    large = next;
  }
}

}  // namespace ssc
