// One row's samples, ready for the kernels: drawn or read, checked, without masked ones and removed
// hits, with their bias and log n; and the ids of the row after it, so that the stream of
// prefetches does not stop in between.
#pragma once

#include "csrc/cpu/per_row/per_row.h"
#include "csrc/cpu/per_row/table.h"

namespace ssc {

template <class T>
class RowSource {
 public:
  // For rows[0:count] in their order; each thread has a source of its own.
  RowSource(const PerRowProblem<T>& problem, const int64_t* rows, int64_t count);

  struct Row {
    int64_t row;       // of the batch
    int64_t count;     // samples that are left
    int64_t num_peak;  // the first of them, which are no hits
    int64_t* ids;      // [count], and then those ahead
    T* bias;           // [count], null: no bias
    T* log_count;      // [count], null: 0
  };

  // The next row and how many ids follow its own; false after the last one. It is valid until the
  // next call.
  bool next(Row& row, int64_t& ahead);

 private:
  void prepare(int64_t index, Row& out);
  void gather_bias(Row& row) const;
  bool is_hit(int64_t row, int64_t id) const;
  bool has_hit(int64_t row, const int64_t* ids) const;

  const PerRowProblem<T>& problem_;
  const int64_t* rows_;
  const int64_t count_;
  int64_t index_ = 0;
  Workspace workspace_;
  std::optional<RowSampler> sampler_;
  float* drawn_log_count_ = nullptr;
  int64_t* kept_hits_ = nullptr;
  T* kept_hit_counts_ = nullptr;
  Row buffers_[2];
};

// The rows that count, of all; with a fallback array for them in `workspace`.
template <class T>
int64_t counted_rows(const PerRowProblem<T>& problem, int64_t* rows) {
  int64_t count = 0;
  for (int64_t i = 0; i < problem.batch; ++i) {
    if (problem.counted == nullptr || problem.counted[i]) rows[count++] = i;
  }
  return count;
}

}  // namespace ssc
