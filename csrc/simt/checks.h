// The executor's messages to the checks of the checked build (races, initialisation, statistics).
// In the other builds these are empty.
#pragma once

#include "csrc/simt/buffers.h"
#include "csrc/simt/executor.h"

namespace ssc::simt {

enum class Access : uint8_t { read, write, atomic };

#if defined(SSC_SIMT_CHECKED)
void checks_start_launch();
void checks_end_launch();
void checks_start_block();
void checks_end_block();
void checks_barrier();                                // all threads of the block are ordered
void checks_sync_warp(Thread* lanes, uint32_t mask);  // these lanes are ordered
void checks_warp_together(uint32_t warp);             // all lanes of a warp have met
// An access of the running thread that the compiler's hooks don't see; aborts if out of bounds.
void checks_access(const void* address, uint32_t bytes, Access access, const void* pc);
// cp.async: the bytes hold nothing until the copy lands.
void checks_copy_issued(const void* shared, uint32_t bytes, const void* pc);
void checks_copy_landed(const void* shared, uint32_t bytes, const void* pc);
// ldmatrix: lane i reads the 16 bytes at rows[i], for 8 count lanes.
void checks_ldmatrix(Thread* lanes, const void* const* rows, uint32_t count, const void* pc);
void checks_new_buffer(const Buffer& buffer);
void checks_forget_buffers();
// The host has initialised these bytes between two launches.
void checks_host_wrote(const void* memory, size_t bytes);
#else
inline void checks_start_launch() {}
inline void checks_end_launch() {}
inline void checks_start_block() {}
inline void checks_end_block() {}
inline void checks_barrier() {}
inline void checks_sync_warp(Thread*, uint32_t) {}
inline void checks_warp_together(uint32_t) {}
inline void checks_access(const void*, uint32_t, Access, const void*) {}
inline void checks_copy_issued(const void*, uint32_t, const void*) {}
inline void checks_copy_landed(const void*, uint32_t, const void*) {}
inline void checks_ldmatrix(Thread*, const void* const*, uint32_t, const void*) {}
inline void checks_new_buffer(const Buffer&) {}
inline void checks_forget_buffers() {}
inline void checks_host_wrote(const void*, size_t) {}
#endif

}  // namespace ssc::simt
