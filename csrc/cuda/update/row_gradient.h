// The gradient of a row: a sum over its repeats.
#pragma once

#include "csrc/cuda/update/columns.h"

namespace ssc::cuda {

// Positions `from` of values and, where `used` is not null, those after it with the same id.
template <class P>
struct RowGradient {
  const P* values;
  const int64_t *ids, *order;
  int64_t dim, count, row, from;
  const uint32_t* used;
  bool alone;      // `from` is the only one
  const P* first;  // its gradient

  __device__ __forceinline__ RowGradient(const P* values, const int64_t* ids, const int64_t* order,
                                         int64_t dim, int64_t count, int64_t row, int64_t from,
                                         const uint32_t* used, bool alone)
      : values(values),
        ids(ids),
        order(order),
        dim(dim),
        count(count),
        row(row),
        from(from),
        used(used),
        alone(alone),
        first(values == nullptr ? nullptr : source(from)) {}

  __device__ __forceinline__ const P* source(int64_t n) const {
    return values + (order == nullptr ? n : order[n]) * dim;
  }

  // The next position of this row whose gradient is to be added, or `count`.
  __device__ __forceinline__ int64_t next(int64_t n) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int64_t words = (count + 31) / 32;
    ++n;
    unsigned mask = ~0u << n % 32;
    for (int64_t base = n / 32; base < words; base += 32) {
      unsigned word = base + lane < words ? used[base + lane] : 0u;
      if (lane == 0) word &= mask;
      mask = ~0u;
      const unsigned some = __ballot_sync(~0u, word != 0);
      if (some == 0) continue;
      const int first = __ffs(static_cast<int>(some)) - 1;
      const int bit = __ffs(static_cast<int>(__shfl_sync(~0u, word, first))) - 1;
      const int64_t found = (base + first) * 32 + bit;
      return found < count && ids[found] == row ? found : count;
    }
    return count;
  }

  // Columns of their sum. For whole warps.
  template <bool kWide, class T>
  __device__ __forceinline__ Columns<T> sum(int c, int length) const {
    Columns<T> g = read_columns<kWide, T>(first, c, length);
    if (alone) return g;
    int64_t last = from;
    bool zeros = false;  // some were left out
    for (int64_t n = next(from); n < count; n = next(n)) {
      const Columns<T> more = read_columns<kWide, T>(source(n), c, length);
#pragma unroll
      for (int k = 0; k < kColumns; ++k) g.at[k] += more.at[k];
      zeros |= n != last + 1;
      last = n;
    }
    zeros |= last + 1 < count && ids[last + 1] == row;
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      if (zeros) g.at[k] += T(0);  // −0 + 0 = 0
    }
    return g;
  }
};

}  // namespace ssc::cuda
