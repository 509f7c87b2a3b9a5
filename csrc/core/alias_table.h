// Walker's alias table: O(1) draws from any discrete distribution.
//   Walker 1977, https://doi.org/10.1145/355744.355749; Vose's O(C) construction 1991,
//   https://doi.org/10.1109/32.92917
//
// C buckets of equal probability; bucket i belongs to class i up to its threshold and to one other
// class, its alias, above it:
//
//     threshold -> +----+              one entry of 8 bytes:
//                  |////| alias(i)      63         b b          0
//                  |////|              +------------+------------+
//                  +----+              | threshold  |   alias    |    b = bits of C, C < 2^b
//                  | i  |              +------------+------------+
//                  +----+
//
// One 64-bit draw x serves twice: the high half of x * C is the bucket, the low half is where in
// the bucket x fell, as a fraction of 2^64. Class i is chosen if that is below threshold << b.
// Nothing is lost by giving the threshold only 64 - b bits: x has 64 bits, of which the choice of
// the bucket takes b. A full bucket has itself as alias; a class of weight 0 has threshold 0 and is
// nobody's alias, so it is never drawn.
//
// One unit of a threshold is a probability of 2^(b - 64) / C; a class's probability is off by at
// most one unit, and by the rounding of its float64 weight. The table is built in integers
// (csrc/cpu/sample/alias_table.h), so what it implies sums to 1 exactly.
#pragma once

#include "csrc/core/lane.h"

namespace ssc {

struct AliasTable {
  const uint64_t* entries;  // [num_classes]
  uint64_t num_classes;
  uint64_t alias_mask;  // 2^b - 1
};

// b: num_classes < 2^b.
SSC_HD int alias_bits(uint64_t num_classes) {
  int bits = 0;
  for (; num_classes != 0; num_classes >>= 1) ++bits;
  return bits;
}

SSC_HD AliasTable make_alias_table(const uint64_t* entries, uint64_t num_classes) {
  return {entries, num_classes, (uint64_t{1} << alias_bits(num_classes)) - 1};
}

// The class drawn by 64 random bits; of what is no such table (memory that was never written, say)
// any number up to alias_mask, which may be num_classes or more: callers look before they use it.
template <class L, bool kNarrow>
SSC_HD typename L::U alias_id(typename L::U x, const AliasTable& table) {
  const Product<typename L::U> place = L::template mul_wide<kNarrow>(x, table.num_classes);
  const typename L::U entry = L::gather(table.entries, place.high);
  const typename L::U alias = entry & table.alias_mask;
  return place.low < entry - alias ? place.high : alias;
}

}  // namespace ssc
