// The rows of W that come next, asked for while the present ones are in work.
#pragma once

#include "csrc/cpu/kernels/prefetch.h"
#include "csrc/cpu/kernels/word.h"
#include "csrc/cpu/loss/table.h"

namespace ssc::SSC_ISA {

// Hands out the rows of W that the next tile will gather, from all over memory, over the `takes`
// register tiles of the present one: so they are on their way into L2 while it is in work.
template <class T>
class UpcomingRows {
 public:
  UpcomingRows(const Samples& samples, int64_t begin, int64_t end, int64_t takes)
      : samples_(samples),
        next_(begin),
        end_(end),
        share_(takes > 0 ? (end - begin + takes - 1) / takes : 0),
        wide_(end - begin > 2 * takes) {}

  Upcoming take() {
    const int64_t stride = 2 * kPrefetchInterval * kWord<T> * element_size(samples_.weight.dtype);
    const int64_t count = wide_ ? 4 : 2;
    if (next_ + count > end_) {
      const char* any = static_cast<const char*>(samples_.weight.data);
      return {{any, any, any, any}, 0};
    }
    const int64_t s = next_;
    next_ += count;
    if (wide_) return {{row(s), row(s + 1), row(s + 2), row(s + 3)}, stride};
    const int64_t other = stride > 64 ? 64 : 0;  // the second of two lines
    return {{row(s), row(s) + other, row(s + 1), row(s + 1) + other}, stride};
  }

  // The next rows, as many as let the takes cover the tile, `most` at most. Returns their number.
  int64_t take(const char** rows, int64_t most) {
    int64_t count = 0;
    for (; count < share_ && count < most && next_ < end_; ++count) rows[count] = row(next_++);
    return count;
  }

 private:
  const char* row(int64_t s) const {
    return samples_.weight.row(samples_.ids == nullptr ? samples_.first + s : samples_.ids[s]);
  }

  const Samples& samples_;
  int64_t next_, end_;
  const int64_t share_;
  const bool wide_;  // four rows a time, where two would not cover the next tile
};

}  // namespace ssc::SSC_ISA
