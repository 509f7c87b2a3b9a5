// Adds coefficient · h_row of a chunk's entries to their classes' rows of the weight gradient, in
// the order of (row, sample) for each class, whatever the number of threads.
//
// Entries are put into buckets by the low bits of their class, bits reversed, so that frequent
// classes, which have small ids, are spread over the threads; and each bucket is sorted by class. A
// row of the gradient is then touched once per chunk, by one thread, instead of once per entry.
#pragma once

#include "csrc/cpu/base/parallel.h"
#include "csrc/cpu/base/workspace.h"
#include "csrc/cpu/per_row/table.h"

namespace ssc {

// Where a class's row of the gradient is.
struct GradSlots {
  const int64_t* touched;  // [count] the class of each slot, rising; null: a class is its slot
  int64_t count;
};

template <class T>
class GradScatter {
 public:
  // Room for chunks of up to `rows` rows of `samples` entries each.
  GradScatter(int64_t rows, int64_t samples, int64_t classes, Workspace& workspace);

  // Where the entries of a chunk's row `i` are written, [samples], and how many they are.
  GradEntry<T>* row_entries(int64_t i) { return unsorted_ + i * samples_; }
  void set_count(int64_t i, int64_t count) { counts_[i] = count; }

  // out [slots, stride], bias [slots] or null: += the entries of a chunk of `rows` rows, whose
  // inputs are h [rows, dim].
  void add(int64_t rows, const T* h, int64_t dim, const GradSlots& slots, T* out, int64_t stride,
           T* bias, const PerRowKernels<T>& kernels, const ParallelFor& parallel_for);

 private:
  void place(int64_t rows, const ParallelFor& parallel_for);

  int64_t samples_;
  int key_bits_;  // of a class id beyond those that its bucket tells
  GradEntry<T>* unsorted_;
  GradEntry<T>* sorted_;
  int64_t* counts_;  // [rows]
  int64_t* starts_;  // [kBuckets + 1][kBlocks]
};

}  // namespace ssc
