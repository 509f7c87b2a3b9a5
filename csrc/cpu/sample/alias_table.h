// Builds the alias table of csrc/core/alias_table.h on the CPU.
#pragma once

#include <cstdint>

#include "csrc/cpu/base/parallel.h"
#include "csrc/cpu/base/workspace.h"

namespace ssc {

// probabilities [num_classes]: float64, at least one positive, none negative, summing to 1 up to
// rounding. entries [num_classes]: the same for any number of threads. O(num_classes) work and 8
// bytes of scratch per class.
void build_alias_table(const double* probabilities, uint64_t num_classes, uint64_t* entries,
                       Workspace& workspace, const ParallelFor& parallel_for);

}  // namespace ssc
