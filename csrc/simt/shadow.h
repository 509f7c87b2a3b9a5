// The checked build's record of memory: for every two bytes the last writer and two
// readers, for every byte whether it holds anything.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ssc::simt {

// When and by whom an access was made. Epochs number the stretches between the barriers of a block,
// on from block to block and launch to launch, so an epoch also tells the block; 0 is "never".
struct Stamp {
  uint32_t epoch;
  uint32_t thread : 10;  // in the block
  uint32_t clock : 22;   // of the thread: how many __syncwarp and fences it has passed
  uint32_t place : 29;   // return address, relative to the library
  uint32_t bytes : 2;    // which of the two bytes
  uint32_t atomic : 1;
};
static_assert(sizeof(Stamp) == 12);

constexpr uint32_t kMaxClock = (1u << 22) - 1;

struct Cell {
  Stamp writer, readers[2];
};

enum ByteState : uint8_t {
  kEmpty = 0,  // nothing was written yet
  kInitialised = 1,
  kInFlight = 2,  // a cp.async will write it
};

// The shadow of one range of memory; pages that nobody looks at take no memory.
class Shadow {
 public:
  explicit Shadow(size_t bytes);
  ~Shadow();
  Shadow(const Shadow&) = delete;
  Shadow& operator=(const Shadow&) = delete;

  Cell& cell(size_t offset) { return cells_[offset / 2]; }
  uint8_t& state(size_t offset) { return states_[offset]; }
  void set_states(size_t offset, size_t count, ByteState state);

 private:
  size_t bytes_;
  Cell* cells_;
  uint8_t* states_;
};

}  // namespace ssc::simt
