// Sorting and merging of samples by class, for the plans.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <utility>

#include "csrc/core/logit_correction.h"
#include "csrc/cpu/base/dtype.h"

namespace ssc {

struct Entry {
  int64_t id;
  int64_t source;  // s < samples: sample s; else samples + index of a row that counts
};

constexpr int kDigitBits = 11;
constexpr int64_t kDigits = int64_t{1} << kDigitBits;

// Stable radix sort by id, O(n) passes over as many digits as `classes` has. Returns whichever of
// the two buffers holds the result.
inline Entry* sort_by_id(Entry* entries, Entry* other, int64_t count, int64_t classes) {
  if (count < 256) {
    std::stable_sort(entries, entries + count,
                     [](const Entry& a, const Entry& b) { return a.id < b.id; });
    return entries;
  }
  const int bits = std::bit_width(static_cast<uint64_t>(classes - 1));
  for (int shift = 0; shift < bits; shift += kDigitBits) {
    int64_t start[kDigits] = {};
    for (int64_t i = 0; i < count; ++i) ++start[(entries[i].id >> shift) & (kDigits - 1)];
    int64_t sum = 0;
    for (int64_t& s : start) {
      const int64_t n = s;
      s = sum;
      sum += n;
    }
    for (int64_t i = 0; i < count; ++i) {
      other[start[(entries[i].id >> shift) & (kDigits - 1)]++] = entries[i];
    }
    std::swap(entries, other);
  }
  return entries;
}

class LogCounts {
 public:
  LogCounts(const void* data, DType dtype) : data_(data), dtype_(dtype) {}

  double operator[](int64_t s) const {
    if (data_ == nullptr) return 0;
    return correction_of(dtype_ == DType::f64 ? static_cast<const double*>(data_)[s]
                                              : static_cast<const float*>(data_)[s]);
  }

  // Whether the copies of a run of equal ids that count (those without an infinite c) have one c.
  bool alike(const Entry* begin, const Entry* end) const {
    const double least = merged(begin, end).first;
    return std::all_of(begin, end, [&](const Entry& e) {
      const double c = (*this)[e.source];
      return c == least || std::isinf(c);
    });
  }

  // The smallest c of a run of equal ids, and log Σ exp(smallest − c) over it: how much likelier
  // they are together than the likeliest alone.
  std::pair<double, double> merged(const Entry* begin, const Entry* end) const {
    double least = (*this)[begin->source];
    if (end - begin == 1) return {least, 0};
    for (const Entry* e = begin; e < end; ++e) least = std::min(least, (*this)[e->source]);
    if (std::isinf(least)) return {least, 0};
    double sum = 0;
    for (const Entry* e = begin; e < end; ++e) sum += std::exp(least - (*this)[e->source]);
    return {least, std::log(sum)};
  }

 private:
  const void* data_;
  DType dtype_;
};

}  // namespace ssc
