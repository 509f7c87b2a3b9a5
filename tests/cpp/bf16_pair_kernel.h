#pragma once

#include <cstdint>

namespace ssc::test {

// sum[i] += the two products of a[i] and b[i], pairs of bf16; 16 of each.
void dot_pairs(float* sum, const uint32_t* a, const uint32_t* b);

// 16 numbers of low, then 16 of high, as bf16.
void round_to_pairs(const float* low, const float* high, uint16_t* out);

}  // namespace ssc::test
