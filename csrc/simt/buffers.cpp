#include "csrc/simt/buffers.h"

#include <algorithm>

#include "csrc/simt/checks.h"

namespace ssc::simt {
namespace {

std::vector<Buffer> all;

}  // namespace

void add_buffer(Buffer buffer) {
  if (buffer.bytes == 0) return;
  std::erase_if(all, [&](const Buffer& other) {
    return other.start < buffer.start + buffer.bytes && buffer.start < other.start + other.bytes;
  });
  checks_new_buffer(buffer);
  const auto place = std::ranges::upper_bound(all, buffer.start, {}, &Buffer::start);
  all.insert(place, std::move(buffer));
}

void clear_buffers() {
  all.clear();
  checks_forget_buffers();
}

const std::vector<Buffer>& buffers() { return all; }

const Buffer* find_buffer(uintptr_t address) {
  static size_t last = 0;  // kernels stay in one buffer for a while
  if (last < all.size() && address - all[last].start < all[last].bytes) return &all[last];
  const auto after = std::ranges::upper_bound(all, address, {}, &Buffer::start);
  if (after == all.begin()) return nullptr;
  const auto candidate = after - 1;
  if (address - candidate->start >= candidate->bytes) return nullptr;
  last = static_cast<size_t>(candidate - all.begin());
  return &*candidate;
}

const Buffer* nearest_buffer(uintptr_t address) {
  const auto distance = [address](const Buffer& buffer) {
    if (address < buffer.start) return buffer.start - address;
    const uintptr_t end = buffer.start + buffer.bytes;
    return address < end ? 0 : address - end;
  };
  const auto nearest = std::ranges::min_element(all, {}, distance);
  return nearest == all.end() ? nullptr : &*nearest;
}

}  // namespace ssc::simt
