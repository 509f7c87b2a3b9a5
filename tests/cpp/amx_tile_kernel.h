#pragma once

#include <cstdint>

namespace ssc::test {

// sum += a b, tiles of 16 by 16: floats, and words of two bf16 each, b's of neighbours down a column.
void multiply_tiles(float* sum, const uint32_t* a, const uint32_t* b);

// The same for a square of `rows` times 16 rows, 1 or 2, and 32 columns. a: [rows][16][16], one tile
// after the other; b [16][32]; sum [16 rows][32], to which it adds or, where `clear`, which it writes.
void multiply_squares(float* sum, const uint32_t* a, const uint32_t* b, int rows, bool clear);

}  // namespace ssc::test
