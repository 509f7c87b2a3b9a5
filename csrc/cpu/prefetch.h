// Software prefetch, spread over the matmul that it hides behind: a burst of prefetches would fill
// the few line buffers that the matmul's own loads from L2 need.
#pragma once

#include <cstdint>

namespace ssc::SSC_ISA {

// Steps of a matmul's inner loop between two prefetches of a stream.
constexpr int64_t kPrefetchInterval = 8;

// What one call of a register tile asks for on the side: `read` is wanted next for loads, `write`
// for stores, one line of each per interval. A stride of 0 asks for the same line again: nothing.
struct Wanted {
  const char* read;
  int64_t read_stride;
  const char* write;
  int64_t write_stride;
};

inline Wanted nothing_wanted(const void* any) {
  return {static_cast<const char*>(any), 0, static_cast<const char*>(any), 0};
}

// Two rows of W that a later tile will gather.
struct Upcoming {
  const char* row[2];
  int64_t stride;  // bytes from one prefetch to the next: half a matmul's steps cover a row
};

}  // namespace ssc::SSC_ISA
