// Random rows of a large table cost a page walk each, which no prefetch hides: huge pages do.
#pragma once

#include <cstddef>

namespace ssc {

constexpr size_t kHugePageBytes = size_t{2} << 20;

// Asks the kernel for huge pages where the memory is (or will be) touched. Only advice: it does
// nothing where the system has none, and never changes what the memory holds.
void advise_huge_pages(void* data, size_t bytes);

}  // namespace ssc
