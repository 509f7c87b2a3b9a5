#include "csrc/cpu/sample/alias_table.h"

#include <algorithm>

#include "csrc/core/alias_table.h"

namespace ssc {
namespace {

// Classes that one thread takes at a time. Part of the result, since rounding errors are carried
// within a chunk: the reference knows it too.
constexpr uint64_t kChunk = uint64_t{1} << 14;

// Sums over the classes before each chunk, one more than there are chunks. A class is small if it
// is less than a bucket, else large.
struct Before {
  uint64_t* lacking;  // what the small classes lack to fill a bucket each
  uint64_t* spare;    // what the large classes have beyond a bucket each
};

// The sizes of all classes, in units in which a bucket holds 2^(64 - b).
struct Sizes {
  uint64_t* size;  // [num_classes]
  uint64_t num_classes;
  int bits;
  uint64_t bucket;
  Before before;

  uint64_t num_chunks() const { return (num_classes + kChunk - 1) / kChunk; }
  uint64_t end_of(uint64_t chunk) const { return std::min(num_classes, (chunk + 1) * kChunk); }
};

// x >= -0.5 rounded to the nearest integer, ties to even; a baseline x86 has no instruction for it.
double round_to_even(double x) { return x < 0x1p52 ? (x + 0x1p52) - 0x1p52 : x; }

struct ChunkTotal {
  uint64_t sum;  // modulo 2^64
  uint64_t largest;
};

// Probabilities as integers. The rounding error is carried from class to class, so no class is off
// by more than a unit. A positive probability keeps at least one unit, so that every such class can
// be drawn.
ChunkTotal round_chunk(const double* probabilities, uint64_t chunk, const Sizes& sizes) {
  const double scale = static_cast<double>(sizes.num_classes) * static_cast<double>(sizes.bucket);
  ChunkTotal total{0, chunk * kChunk};
  double carry = 0.0;
  for (uint64_t k = chunk * kChunk; k < sizes.end_of(chunk); ++k) {
    sizes.size[k] = 0;
    if (probabilities[k] == 0.0) continue;
    const double wanted = probabilities[k] * scale + carry;
    const double given = std::max(round_to_even(wanted), 1.0);
    carry = wanted - given;
    sizes.size[k] = static_cast<uint64_t>(given);
    total.sum += sizes.size[k];
    if (sizes.size[k] > sizes.size[total.largest]) total.largest = k;
  }
  return total;
}

// Sums of one chunk, where the prefix sums will be.
void sum_chunk(uint64_t chunk, const Sizes& sizes) {
  uint64_t lacking = 0, spare = 0;
  for (uint64_t k = chunk * kChunk; k < sizes.end_of(chunk); ++k) {
    const uint64_t size = sizes.size[k], bucket = sizes.bucket;
    lacking += size < bucket ? bucket - size : 0;
    spare += size < bucket ? 0 : size - bucket;
  }
  sizes.before.lacking[chunk + 1] = lacking;
  sizes.before.spare[chunk + 1] = spare;
}

// Both searches find something, since small classes lack as much as large ones have to spare; for
// probabilities that sum to anything but 1 they still end within the classes.

// Goes up to the large class from which a small one is filled up.
class LargeClasses {
 public:
  explicit LargeClasses(const Sizes& sizes) : sizes_(sizes) {}

  // The first large class such that it and those before it have more than `lacking` to spare;
  // `lacking` must not fall from call to call.
  uint64_t first_above(uint64_t lacking) {
    while (spare_ <= lacking) {
      if (next_ % kChunk == 0) {
        const uint64_t* before = sizes_.before.spare;
        const uint64_t* chunk_end = std::upper_bound(before + next_ / kChunk + 1,
                                                     before + sizes_.num_chunks() + 1, lacking);
        const auto chunk = static_cast<uint64_t>(chunk_end - before) - 1;
        next_ = chunk * kChunk;
        spare_ = before[chunk];
      }
      if (next_ >= sizes_.num_classes) break;
      const uint64_t size = sizes_.size[next_];
      if (size >= sizes_.bucket) {
        spare_ += size - sizes_.bucket;
        found_ = next_;
      }
      ++next_;
    }
    return found_;
  }

 private:
  const Sizes& sizes_;
  uint64_t next_ = 0;   // the class to look at next
  uint64_t spare_ = 0;  // of the large classes before it
  uint64_t found_ = 0;  // the last one of them
};

// Goes up to the small class with which a large one has nothing left to give.
class SmallClasses {
 public:
  explicit SmallClasses(const Sizes& sizes) : sizes_(sizes) {}

  // The least that some small class and those before it lack which is not below `spare`; `spare`
  // must not fall from call to call.
  uint64_t first_reaching(uint64_t spare) {
    while (lacking_ < spare) {
      if (next_ % kChunk == 0) {
        const uint64_t* before = sizes_.before.lacking;
        const uint64_t* chunk_end =
            std::lower_bound(before + next_ / kChunk + 1, before + sizes_.num_chunks() + 1, spare);
        const auto chunk = static_cast<uint64_t>(chunk_end - before) - 1;
        next_ = chunk * kChunk;
        lacking_ = before[chunk];
      }
      if (next_ >= sizes_.num_classes) break;
      const uint64_t size = sizes_.size[next_];
      if (size < sizes_.bucket) lacking_ += sizes_.bucket - size;
      ++next_;
    }
    return lacking_;
  }

 private:
  const Sizes& sizes_;
  uint64_t next_ = 0;
  uint64_t lacking_ = 0;
};

// The entries of one chunk of classes. A large class that small ones took more from than it has to
// spare is itself filled up by the next large class, which may be in another chunk.
void fill_chunk(uint64_t chunk, const Sizes& sizes, uint64_t* entries) {
  LargeClasses larges(sizes);
  SmallClasses smalls(sizes);
  const uint64_t bucket = sizes.bucket, end = sizes.end_of(chunk);
  uint64_t lacking = sizes.before.lacking[chunk];
  uint64_t spare = sizes.before.spare[chunk];
  uint64_t open = sizes.num_classes;  // a large class that has still to be filled up
  for (uint64_t k = chunk * kChunk; k < end; ++k) {
    const uint64_t size = sizes.size[k];
    if (size < bucket) {
      entries[k] = (size << sizes.bits) | larges.first_above(lacking);
      lacking += bucket - size;
      continue;
    }
    if (open != sizes.num_classes) entries[open] |= k;
    spare += size - bucket;
    const uint64_t given_too_much = smalls.first_reaching(spare) - spare;
    open = given_too_much == 0 ? sizes.num_classes : k;
    entries[k] = given_too_much == 0 ? k : (bucket - given_too_much) << sizes.bits;
  }
  if (open == sizes.num_classes) return;
  uint64_t next = end;
  while (next < sizes.num_classes && sizes.size[next] < bucket) ++next;
  entries[open] |= next < sizes.num_classes ? next : open;
}

}  // namespace

// Vose's construction without work lists, in the form of Hübschle-Schneider and Sanders 2019
// (https://arxiv.org/abs/1903.00227): small classes take what they lack from the large ones in
// order, so whom each of them takes it from follows from prefix sums, and any piece of the table
// can be made by itself. Integers throughout, so nothing is left over at the end.
void build_alias_table(const double* probabilities, uint64_t num_classes, uint64_t* entries,
                       Workspace& workspace, const ParallelFor& parallel_for) {
  Sizes sizes{nullptr, num_classes, alias_bits(num_classes), 0, {}};
  sizes.bucket = uint64_t{1} << (64 - sizes.bits);
  const auto chunks = static_cast<int64_t>(sizes.num_chunks());
  sizes.size = workspace.take<uint64_t>(static_cast<int64_t>(num_classes));
  sizes.before = {workspace.take<uint64_t>(chunks + 1), workspace.take<uint64_t>(chunks + 1)};
  auto* totals = workspace.take<ChunkTotal>(chunks);
  const auto for_chunks = [&](auto&& f) {
    parallel_for(chunks, 4, [&](int64_t first, int64_t last) {
      for (int64_t chunk = first; chunk < last; ++chunk) f(static_cast<uint64_t>(chunk));
    });
  };

  for_chunks([&](uint64_t chunk) {
    totals[chunk] = round_chunk(probabilities, chunk, sizes);
    sum_chunk(chunk, sizes);
  });
  // The largest class gets the part that float64 itself lost, 2^-52 of the total or so.
  ChunkTotal all = totals[0];
  for (int64_t chunk = 1; chunk < chunks; ++chunk) {
    all.sum += totals[chunk].sum;
    if (sizes.size[totals[chunk].largest] > sizes.size[all.largest]) {
      all.largest = totals[chunk].largest;
    }
  }
  sizes.size[all.largest] += num_classes * sizes.bucket - all.sum;
  sum_chunk(all.largest / kChunk, sizes);
  sizes.before.lacking[0] = sizes.before.spare[0] = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    sizes.before.lacking[chunk + 1] += sizes.before.lacking[chunk];
    sizes.before.spare[chunk + 1] += sizes.before.spare[chunk];
  }
  for_chunks([&](uint64_t chunk) { fill_chunk(chunk, sizes, entries); });
}

}  // namespace ssc
