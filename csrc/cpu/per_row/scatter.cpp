#include "csrc/cpu/per_row/scatter.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "csrc/cpu/loss/table.h"

namespace ssc {
namespace {

constexpr int kBucketBits = 8;
constexpr int64_t kBuckets = int64_t{1} << kBucketBits;
constexpr int64_t kBlocks = 32;  // of rows, each counted and placed by one thread
constexpr int kDigitBits = 8;

int64_t bucket_of(int64_t id) {
  auto low = static_cast<unsigned>(id) & (kBuckets - 1);
  low = ((low & 0xf0u) >> 4) | ((low & 0x0fu) << 4);
  low = ((low & 0xccu) >> 2) | ((low & 0x33u) << 2);
  return ((low & 0xaau) >> 1) | ((low & 0x55u) << 1);
}

// Stable sort by class of entries whose bucket is the same. Returns whichever of the two arrays
// holds the result.
template <class Entry>
Entry* sort_bucket(Entry* entries, Entry* other, int64_t count, int key_bits) {
  const auto less = [](const Entry& a, const Entry& b) { return a.id < b.id; };
  if (key_bits <= 0 || std::is_sorted(entries, entries + count, less)) return entries;
  constexpr int64_t kFew = 48;
  if (count < kFew) {
    for (int64_t i = 1; i < count; ++i) {
      const Entry entry = entries[i];
      int64_t j = i;
      for (; j > 0 && entry.id < entries[j - 1].id; --j) entries[j] = entries[j - 1];
      entries[j] = entry;
    }
    return entries;
  }
  const int passes = (key_bits + kDigitBits - 1) / kDigitBits;
  const int bits = (key_bits + passes - 1) / passes;
  const int64_t mask = (int64_t{1} << bits) - 1;
  for (int pass = 0, shift = kBucketBits; pass < passes; ++pass, shift += bits) {
    int64_t start[1 << kDigitBits] = {};
    for (int64_t i = 0; i < count; ++i) ++start[(entries[i].id >> shift) & mask];
    int64_t sum = 0;
    for (int64_t digit = 0; digit <= mask; ++digit) sum += std::exchange(start[digit], sum);
    for (int64_t i = 0; i < count; ++i) {
      other[start[(entries[i].id >> shift) & mask]++] = entries[i];
    }
    std::swap(entries, other);
  }
  return entries;
}

// The position of `id` in a sorted list that has it, at or after `from`: a search in steps that
// double, since the next class of a bucket is not far away.
int64_t find_after(const int64_t* list, int64_t count, int64_t from, int64_t id) {
  int64_t step = 1;
  while (from + step < count && list[from + step] <= id) step *= 2;
  return std::lower_bound(list + from + step / 2, list + std::min(from + step, count), id) - list;
}

}  // namespace

template <class T>
GradScatter<T>::GradScatter(int64_t rows, int64_t samples, int64_t classes, Workspace& workspace)
    : samples_(samples),
      key_bits_(std::bit_width(static_cast<uint64_t>(classes - 1)) - kBucketBits),
      unsorted_(workspace.take<GradEntry<T>>(rows * samples)),
      sorted_(workspace.take<GradEntry<T>>(rows * samples)),
      counts_(workspace.take<int64_t>(rows)),
      starts_(workspace.take<int64_t>((kBuckets + 1) * kBlocks)) {}

// Entries by bucket, then by row and sample: starts_[k][0] is where bucket k begins.
template <class T>
void GradScatter<T>::place(int64_t rows, const ParallelFor& parallel_for) {
  const Partition blocks = partition(rows, kBlocks);
  const auto for_entries = [&](int64_t block, auto&& f) {
    const Range range = piece(blocks, block);
    for (int64_t i = range.begin; i < range.end; ++i) {
      const GradEntry<T>* entries = unsorted_ + i * samples_;
      for (int64_t s = 0; s < counts_[i]; ++s) f(entries[s]);
    }
  };
  std::fill_n(starts_, (kBuckets + 1) * kBlocks, 0);
  parallel_for(kBlocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      int64_t counts[kBuckets] = {};
      for_entries(block, [&](const GradEntry<T>& entry) { ++counts[bucket_of(entry.id)]; });
      for (int64_t k = 0; k < kBuckets; ++k) starts_[k * kBlocks + block] = counts[k];
    }
  });
  int64_t sum = 0;
  for (int64_t i = 0; i < (kBuckets + 1) * kBlocks; ++i) sum += std::exchange(starts_[i], sum);
  parallel_for(kBlocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      int64_t next[kBuckets];
      for (int64_t k = 0; k < kBuckets; ++k) next[k] = starts_[k * kBlocks + block];
      for_entries(block,
                  [&](const GradEntry<T>& entry) { sorted_[next[bucket_of(entry.id)]++] = entry; });
    }
  });
}

template <class T>
void GradScatter<T>::add(int64_t rows, const T* h, int64_t dim, const GradSlots& slots, T* out,
                         int64_t stride, T* bias, const PerRowKernels<T>& kernels,
                         const ParallelFor& parallel_for) {
  place(rows, parallel_for);
  parallel_for(kBuckets, 1, [&](int64_t first_bucket, int64_t last_bucket) {
    Workspace local;
    int64_t most = 0;
    for (int64_t k = first_bucket; k < last_bucket; ++k) {
      most = std::max(most, starts_[(k + 1) * kBlocks] - starts_[k * kBlocks]);
    }
    auto* runs = local.take<GradRun>(most);
    for (int64_t k = first_bucket; k < last_bucket; ++k) {
      const int64_t begin = starts_[k * kBlocks];
      const int64_t count = starts_[(k + 1) * kBlocks] - begin;
      const GradEntry<T>* entries =
          sort_bucket(sorted_ + begin, unsorted_ + begin, count, key_bits_);
      int64_t num_runs = 0;
      int64_t slot = 0;
      for (int64_t i = 0; i < count;) {
        const int64_t id = entries[i].id;
        slot = slots.touched == nullptr ? id : find_after(slots.touched, slots.count, slot, id);
        int64_t end = i + 1;
        while (end < count && entries[end].id == id) ++end;
        runs[num_runs++] = {slot, i, end};
        i = end;
      }
      kernels.add_runs(runs, num_runs, entries, h, dim, out, stride, bias);
    }
  });
}

template class GradScatter<float>;
template class GradScatter<double>;

}  // namespace ssc
