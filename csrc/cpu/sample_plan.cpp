#include "csrc/cpu/sample_plan.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

namespace ssc {
namespace {

struct Entry {
  int64_t id;
  int64_t source;  // s < samples: sample s; else samples + index of a row that counts
};

constexpr int kDigitBits = 11;
constexpr int64_t kDigits = int64_t{1} << kDigitBits;

// Stable radix sort by id, O(n) passes over as many digits as `classes` has. Returns whichever of
// the two buffers holds the result.
Entry* sort_by_id(Entry* entries, Entry* other, int64_t count, int64_t classes) {
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
    return dtype_ == DType::f64 ? static_cast<const double*>(data_)[s]
                                : static_cast<const float*>(data_)[s];
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

// Index of the first of values[0:n] outside [0, classes) and not `allowed`; −1 if none.
int64_t first_outside(const int64_t* values, int64_t n, int64_t classes, int64_t allowed) {
  for (int64_t i = 0; i < n; ++i) {
    if (static_cast<uint64_t>(values[i]) >= static_cast<uint64_t>(classes) && values[i] != allowed)
      return i;
  }
  return -1;
}

}  // namespace

SamplePlan plan_samples(const int64_t* ids, int64_t samples, const void* log_expected_count,
                        DType log_count_dtype, const int64_t* target, int64_t batch,
                        int64_t classes, int64_t ignore_index, bool remove_accidental_hits,
                        Workspace& workspace) {
  SamplePlan plan;
  plan.remove_hits = remove_accidental_hits;
  plan.bad_target = first_outside(target, batch, classes, ignore_index);
  plan.bad_id = first_outside(ids, samples, classes, 0);
  if (plan.bad_target >= 0 || plan.bad_id >= 0) return plan;

  plan.row_ids = workspace.take<int64_t>(batch);
  auto* entries = workspace.take<Entry>(samples + batch);
  for (int64_t s = 0; s < samples; ++s) entries[s] = {ids[s], s};
  for (int64_t i = 0; i < batch; ++i) {
    if (target[i] == ignore_index) continue;
    entries[samples + plan.rows] = {target[i], samples + plan.rows};
    plan.row_ids[plan.rows++] = i;
  }
  const int64_t count = samples + plan.rows;
  const Entry* sorted = sort_by_id(entries, workspace.take<Entry>(count), count, classes);

  plan.ids = workspace.take<int64_t>(samples);
  plan.log_count = workspace.take<double>(samples);
  plan.log_copies = workspace.take<double>(samples);
  plan.slot = workspace.take<int64_t>(samples);
  plan.hit = workspace.take<int64_t>(plan.rows);
  plan.touched = workspace.take<int64_t>(count);
  plan.by_target = workspace.take<int64_t>(plan.rows);
  plan.by_target_slot = workspace.take<int64_t>(plan.rows);

  const LogCounts log_counts(log_expected_count, log_count_dtype);
  int64_t targets = 0;
  for (const Entry *run = sorted, *end = sorted + count; run < end;) {
    const Entry* e = run;
    while (e < end && e->id == run->id && e->source < samples) ++e;  // stable: samples come first
    const bool sampled = e > run;
    const int64_t sample = sampled ? plan.distinct : -1;
    if (sampled) {
      plan.ids[sample] = run->id;
      const auto [least, log_copies] = log_counts.merged(run, e);
      plan.log_count[sample] = least - log_copies;
      plan.log_copies[sample] = log_copies;
      plan.slot[sample] = plan.touched_count;
      ++plan.distinct;
    }
    for (; e < end && e->id == run->id; ++e) {
      const int64_t row = e->source - samples;
      plan.hit[row] = sample;
      plan.by_target[targets] = row;
      plan.by_target_slot[targets++] = plan.touched_count;
    }
    plan.touched[plan.touched_count++] = run->id;
    run = e;
  }
  return plan;
}

}  // namespace ssc
