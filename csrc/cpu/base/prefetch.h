// Software prefetch of rows that lie anywhere in memory.
#pragma once

#include <cstdint>

namespace ssc {

enum class PrefetchTo { l1, l2 };

// Asks for the memory [from, from + bytes), line by line. GCC takes a function that does nothing but
// prefetch for one without effects and drops its calls (seen with GCC 12, where all prefetches of
// row updates and of targets were missing from the objects); the empty asm is an effect.
template <PrefetchTo kLevel = PrefetchTo::l1>
static inline __attribute__((always_inline)) void prefetch_lines(const void* from, int64_t bytes) {
  const char* const begin = static_cast<const char*>(from);
  for (int64_t b = 0; b < bytes; b += 64) {
    __builtin_prefetch(begin + b, 0, kLevel == PrefetchTo::l1 ? 3 : 2);
  }
  asm volatile("");
}

}  // namespace ssc
