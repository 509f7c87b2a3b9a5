#include "csrc/cpu/base/workspace.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>

#include "csrc/cpu/base/huge_pages.h"

namespace ssc {
namespace {

constexpr size_t kAlignment = 64;
// The most that the cache holds while no call is running.
constexpr size_t kCacheLimit = size_t{160} << 20;

Workspace::Block allocate(size_t bytes) {
  // Small steps stay small: below a huge page, round to 64 KiB.
  const size_t unit = bytes < kHugePageBytes ? size_t{64} << 10 : kHugePageBytes;
  const size_t size = (bytes + unit - 1) / unit * unit;
  void* data = std::aligned_alloc(std::min(unit, kHugePageBytes), size);
  if (data == nullptr) throw std::bad_alloc();
  advise_huge_pages(data, size);
  return {static_cast<char*>(data), size};
}

class Cache {
 public:
  // The smallest cached block that is large enough, else a new one.
  Workspace::Block get(size_t bytes) {
    {
      const std::lock_guard lock(mutex_);
      auto best = blocks_.end();
      for (auto it = blocks_.begin(); it != blocks_.end(); ++it) {
        if (it->size >= bytes && (best == blocks_.end() || it->size < best->size)) best = it;
      }
      if (best != blocks_.end()) {
        const Workspace::Block block = *best;
        held_ -= block.size;
        blocks_.erase(best);
        return block;
      }
    }
    return allocate(bytes);
  }

  void put(Workspace::Block block) {
    const std::lock_guard lock(mutex_);
    blocks_.push_back(block);
    held_ += block.size;
    while (held_ > kCacheLimit) {  // the oldest go first
      std::free(blocks_.front().data);
      held_ -= blocks_.front().size;
      blocks_.erase(blocks_.begin());
    }
  }

 private:
  std::mutex mutex_;
  std::vector<Workspace::Block> blocks_;
  size_t held_ = 0;
};

[[maybe_unused]] Cache& cache() {     // unused under AddressSanitizer
  static auto* instance = new Cache;  // never destroyed: threads may still run at exit
  return *instance;
}

}  // namespace

#if defined(__SANITIZE_ADDRESS__)

// Every array in memory of its own that ends with it, full of NaNs: an overrun is seen, and so is
// a read of what was never written.
void* Workspace::take_bytes(size_t bytes) {
  void* data = nullptr;
  if (posix_memalign(&data, kAlignment, bytes) != 0) throw std::bad_alloc();
  std::memset(data, 0xff, bytes);
  blocks_.push_back({static_cast<char*>(data), bytes});
  return data;
}

Workspace::~Workspace() {
  for (const Block& block : blocks_) std::free(block.data);
}

#else

void* Workspace::take_bytes(size_t bytes) {
  bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (blocks_.empty() || used_ + bytes > blocks_.back().size) {
    // Arrays of a few KiB share a block; large ones have one each, of a size that recurs.
    blocks_.push_back(cache().get(std::max(bytes, size_t{256} << 10)));
    used_ = 0;
  }
  void* out = blocks_.back().data + used_;
  used_ += bytes;
  return out;
}

Workspace::~Workspace() {
  for (const Block& block : blocks_) cache().put(block);
}

#endif

}  // namespace ssc
