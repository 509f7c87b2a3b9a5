// Software prefetch, spread over the matmul that it hides behind: a burst of prefetches would fill
// the few line buffers that the matmul's own loads from L2 need.
#pragma once

#include <cstdint>

namespace ssc::SSC_ISA {

// Steps of a matmul's inner loop between two prefetches of a stream.
constexpr int64_t kPrefetchInterval = 8;

// The lines that one call of a register tile asks for on the side: two streams wanted next for
// loads, one for stores, a line of each per interval. A stride of 0 asks for the same line again: nothing.
struct Wanted {
  const char* read[2];
  int64_t read_stride;
  const char* write;
  int64_t write_stride;
};

inline Wanted nothing_wanted(const void* any) {
  const char* line = static_cast<const char*>(any);
  return {{line, line}, 0, line, 0};
}

// Up to four rows of W that a later tile will gather: one pair in each half of a matmul's steps.
struct Upcoming {
  const char* row[4];
  int64_t stride;  // bytes from one prefetch to the next, so that half the steps cover a row
};

}  // namespace ssc::SSC_ISA
