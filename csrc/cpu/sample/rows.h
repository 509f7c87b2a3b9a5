// Draws of which every row has its own: row r takes those of the key's subsequence r + 1, so its
// ids depend neither on the number of rows nor, with replacement, on S. They can be made again
// whenever they are needed, O(S) memory at a time.
#pragma once

#include <cstdint>
#include <optional>

#include "csrc/cpu/base/workspace.h"
#include "csrc/cpu/sample/blocks.h"

namespace ssc {

enum class DrawMethod { with_replacement, distinct, race };

struct RowDraws {
  Proposal proposal;
  PhiloxKey key;  // of subsequence 0
  int64_t num_samples;
  DrawMethod method;
  const double* tries;     // one number, the t of n without replacement; null: each row's own draws
  const int64_t* exclude;  // [rows, num_excluded] classes that a row must not have; may be null.
                           // Ids outside [0, num_classes) exclude nothing.
  int64_t num_excluded;
  uint64_t num_drawable;  // classes of positive probability
};

// Draws row after row; each thread has one of its own.
class RowSampler {
 public:
  explicit RowSampler(const RowDraws& draws);

  // ids [num_samples] of a row. Returns how many draws they took, not counting excluded ones.
  // Throws std::runtime_error if its exclusions leave too few classes.
  int64_t draw(int64_t row, int64_t* ids);

  // log n, as corrections, of any ids in the row that was drawn (or just entered) last. Its
  // exclusions make the others likelier: q / (1 - Q), Q being what they had together, and at most
  // 1. A class that is excluded itself, a target say, is treated alike. 0 for an id outside [0,
  // num_classes).
  void log_counts(const int64_t* ids, int64_t n, float* out) const;

  // For a row whose targets' counts are all that is wanted: draws only if they depend on it.
  void enter(int64_t row);

 private:
  void exclude_row(int64_t row);
  void draw_replaced(PhiloxKey key, int64_t* ids);

  const RowDraws& draws_;
  const SampleKernels& kernels_;
  Workspace workspace_;
  std::optional<IdSet> seen_;    // what the row must not have, and without replacement has
  Arrival* arrivals_ = nullptr;  // [num_classes] for the race
  int64_t* spare_ids_ = nullptr;
  double left_ = 1.0;  // 1 - Q
  LogCount count_;
};

}  // namespace ssc
