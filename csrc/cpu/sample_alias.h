// Builds the alias table of csrc/core/alias_table.h on the CPU.
#pragma once

#include <cstdint>

namespace ssc {

// probabilities [num_classes]: float64, at least one positive, none negative, summing to 1 up to
// rounding. entries [num_classes]. O(num_classes) time and 8 bytes of scratch per class.
void build_alias_table(const double* probabilities, uint64_t num_classes, uint64_t* entries);

}  // namespace ssc
