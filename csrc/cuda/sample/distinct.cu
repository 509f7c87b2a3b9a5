// Which draw of the stream was the first of its id? A hash table in the workspace (id_table.h)
// knows. A draw is new if it is the earliest of its id; a prefix sum over the new ones gives each
// its place.
//
// Large samples go through kRounds rounds of at least 2 S draws by all blocks, two launches each:
//   insert    draw, look up, offer the draw as its id's earliest; per block, how many of its draws
//             are new is kept right whoever comes earlier later on. The last block to end sums up.
//   compact   new draws to their places
// A round that finds nothing left to do ends at once. One block then goes on, 2048 draws at a time,
// until S ids are found: it does all the work of small samples, and the rest of rare large ones.
//
// Global traffic: 16 bytes for each slot of the table to zero it; for each draw two atomic
// functions and a load of 8 bytes anywhere in the table, and in rounds 16 bytes for its slot's way
// from the one kernel to the other; 8 bytes for each id.
#include <algorithm>
#include <bit>

#include "csrc/core/rejection.h"
#include "csrc/cuda/device/block_scan.h"
#include "csrc/cuda/device/grid.h"
#include "csrc/cuda/device/vector_access.h"
#include "csrc/cuda/sample/id_table.h"
#include "csrc/cuda/sample/sample.h"

namespace ssc::cuda {
namespace {

using Word = IdTable::Word;

constexpr int64_t kSerialSamples = 8192;  // up to which one block does it all
constexpr int kRounds = 2;
constexpr int kThreads = 256;
constexpr int kBlockDraws = 2 * kThreads;
constexpr int kTailThreads = 1024;
constexpr int kTailDraws = 2 * kTailThreads;

// Zero at first.
struct Progress {
  Word found[kRounds + 1];     // distinct ids before round r
  unsigned finished[kRounds];  // blocks that are through with the insertions of round r
};

template <class Proposal>
struct DistinctArguments {
  Proposal proposal;
  const int64_t* key;
  Word num_samples;
  int64_t* ids;
  int64_t* num_draws;
  IdTable table;
  Progress* progress;
  unsigned* news;  // [kRounds][blocks]: new draws of each block
  Word* before;    // [blocks]: new draws before each block, of all rounds
  Word* slots;     // [blocks][kBlockDraws] of the round
};

struct __align__(16) TwoSlots {
  Word first, second;
};

// The draw is number `rank` of the distinct ones.
template <class Proposal>
__device__ __forceinline__ void put(const DistinctArguments<Proposal>& a, Word rank, int64_t id,
                                    Word draw) {
  if (rank >= a.num_samples) return;
  a.ids[rank] = id;
  if (rank + 1 == a.num_samples) *a.num_draws = static_cast<int64_t>(draw) + 1;
}

// Four blocks: unasked, ptxas aims at eight and spills.
template <class Proposal>
__global__ void __launch_bounds__(kThreads, 4)
    insert_kernel(const __grid_constant__ DistinctArguments<Proposal> a, int round) {
  __shared__ ScanShared<kThreads> scan;
  __shared__ bool last;
  const Word found = a.progress->found[round];
  if (found >= a.num_samples) {
    if (blockIdx.x == 0 && threadIdx.x == 0) a.progress->found[round + 1] = found;
    return;
  }
  const Word blocks = gridDim.x, first_draw = round * blocks * kBlockDraws;
  const Word pair = static_cast<Word>(blockIdx.x) * kThreads + threadIdx.x;
  const TwoIds drawn = two_draws(a.proposal, load_key(a.key), first_draw / 2 + pair);
  unsigned* const news = a.news + round * blocks;
  const auto insert = [&](int64_t id, Word draw) {
    const Word slot = a.table.slot_of(id);
    const Word old = a.table.offer(slot, draw);
    if (old < ~draw) {  // earlier than what was there
      atomicAdd(news + blockIdx.x, 1u);
      if (old != 0) atomicSub(news + (~old - first_draw) / kBlockDraws, 1u);
    }
    return slot;
  };
  const Word draw = first_draw + 2 * pair;
  const Word first = insert(drawn.first, draw), second = insert(drawn.second, draw + 1);
  store_vector(a.slots + 2 * pair, TwoSlots{first, second});

  // The last block sees what all have counted.
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(a.progress->finished + round, 1u) + 1 == blocks;
  __syncthreads();
  if (!last) return;
  __threadfence();
  Word running = found;
  for (Word base = 0; base < blocks; base += kThreads) {
    const Word block = base + threadIdx.x;
    const PrefixSum sum = prefix_sum(block < blocks ? __ldcg(news + block) : 0u, scan);
    if (block < blocks) a.before[block] = running + sum.before;
    running += sum.total;
  }
  if (threadIdx.x == 0) a.progress->found[round + 1] = running;
}

template <class Proposal>
__global__ void __launch_bounds__(kThreads)
    compact_kernel(const __grid_constant__ DistinctArguments<Proposal> a, int round) {
  __shared__ ScanShared<kThreads> scan;
  if (a.progress->found[round] >= a.num_samples) return;
  const Word pair = static_cast<Word>(blockIdx.x) * kThreads + threadIdx.x;
  const Word draw = static_cast<Word>(round) * gridDim.x * kBlockDraws + 2 * pair;
  const TwoSlots slots = load_vector<TwoSlots>(a.slots + 2 * pair);
  const bool first = a.table.is_first(slots.first, draw);
  const bool second = a.table.is_first(slots.second, draw + 1);
  const Word rank =
      a.before[blockIdx.x] + prefix_sum(unsigned{first} + unsigned{second}, scan).before;
  const auto id = [&](Word slot) { return static_cast<int64_t>(__ldcg(a.table.ids + slot) - 1); };
  if (first) put(a, rank, id(slots.first), draw);
  if (second) put(a, rank + first, id(slots.second), draw + 1);
}

// One block, from the first draw that no round has seen.
template <class Proposal>
__global__ void __launch_bounds__(kTailThreads)
    tail_kernel(const __grid_constant__ DistinctArguments<Proposal> a, int rounds, Word first_draw,
                double most) {
  __shared__ ScanShared<kTailThreads> scan;
  const PhiloxKey key = load_key(a.key);
  Word found = a.progress->found[rounds];
  for (Word base = first_draw; found < a.num_samples && static_cast<double>(base) < most;
       base += kTailDraws) {
    const Word draw = base + 2 * threadIdx.x;
    const TwoIds drawn = two_draws(a.proposal, key, draw / 2);
    const Word slot = a.table.slot_of(drawn.first), next_slot = a.table.slot_of(drawn.second);
    a.table.offer(slot, draw);
    a.table.offer(next_slot, draw + 1);
    __syncthreads();
    const bool first = a.table.is_first(slot, draw);
    const bool second = a.table.is_first(next_slot, draw + 1);
    const PrefixSum sum = prefix_sum(unsigned{first} + unsigned{second}, scan);
    if (first) put(a, found + sum.before, drawn.first, draw);
    if (second) put(a, found + sum.before + first, drawn.second, draw + 1);
    found += sum.total;
  }
  if (found >= a.num_samples) return;
  if (threadIdx.x == 0) *a.num_draws = -1;
  for (Word i = found + threadIdx.x; i < a.num_samples; i += kTailThreads) a.ids[i] = -1;
}

// How the workspace is cut. Offsets in bytes; what comes before `before` is set to zero.
struct Layout {
  int rounds;
  int64_t blocks;    // of a round
  int64_t capacity;  // of the table
  int64_t progress, ids, earliest, news, before, slots, bytes;
};

Layout layout_of(int64_t num_samples) {
  Layout layout{};
  const bool serial = num_samples <= kSerialSamples;
  layout.rounds = serial ? 0 : kRounds;
  layout.blocks = serial ? 0 : ceil_div(num_samples, kThreads);
  const int64_t most = num_samples + (serial ? kTailDraws : layout.blocks * kBlockDraws);
  layout.capacity =
      static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(ceil_div(most * 4, 3))));
  int64_t end = 0;
  const auto take = [&](int64_t count, size_t size) {
    const int64_t offset = end;
    end += ceil_div(count * static_cast<int64_t>(size), 256) * 256;
    return offset;
  };
  layout.progress = take(1, sizeof(Progress));
  layout.ids = take(layout.capacity, sizeof(Word));
  layout.earliest = take(layout.capacity, sizeof(Word));
  layout.news = take(layout.rounds * layout.blocks, sizeof(unsigned));
  layout.before = take(layout.blocks, sizeof(Word));
  layout.slots = take(layout.blocks * kBlockDraws, sizeof(Word));
  layout.bytes = end;
  return layout;
}

}  // namespace

int64_t distinct_bytes(int64_t num_samples) { return layout_of(num_samples).bytes; }

template <class Proposal>
cudaError_t draw_distinct(const Proposal& proposal, const int64_t* key, int64_t num_samples,
                          int64_t* ids, int64_t* num_draws, void* workspace, cudaStream_t stream) {
  if (num_samples == 0) return returned(cudaMemsetAsync(num_draws, 0, sizeof(*num_draws), stream));
  const Layout layout = layout_of(num_samples);
  auto* const bytes = static_cast<char*>(workspace);
  const auto words = [&](int64_t offset) { return reinterpret_cast<Word*>(bytes + offset); };
  const auto capacity = static_cast<uint64_t>(layout.capacity);
  const DistinctArguments<Proposal> arguments = {
      proposal,
      key,
      static_cast<Word>(num_samples),
      ids,
      num_draws,
      {words(layout.ids), words(layout.earliest), capacity - 1, 64 - std::countr_zero(capacity)},
      reinterpret_cast<Progress*>(bytes + layout.progress),
      reinterpret_cast<unsigned*>(bytes + layout.news),
      words(layout.before),
      words(layout.slots)};
  const auto blocks = static_cast<unsigned>(layout.blocks);
  cudaError_t error =
      returned(cudaMemsetAsync(workspace, 0, static_cast<size_t>(layout.before), stream));
  for (int round = 0; round < layout.rounds && error == cudaSuccess; ++round) {
    error = launch(insert_kernel<Proposal>, blocks, kThreads, 0, stream, arguments, round);
    if (error != cudaSuccess) break;
    error = launch(compact_kernel<Proposal>, blocks, kThreads, 0, stream, arguments, round);
  }
  if (error != cudaSuccess) return error;
  const Word first_draw = static_cast<Word>(layout.rounds * layout.blocks) * kBlockDraws;
  const double most = most_distinct_draws(num_classes(proposal));
  return launch(tail_kernel<Proposal>, 1, kTailThreads, 0, stream, arguments, layout.rounds,
                first_draw, most);
}

#define SSC_SAMPLE_DISTINCT_INSTANCE(Proposal)                                                     \
  template cudaError_t draw_distinct(const Proposal&, const int64_t*, int64_t, int64_t*, int64_t*, \
                                     void*, cudaStream_t)
SSC_FOR_PROPOSALS(SSC_SAMPLE_DISTINCT_INSTANCE);
#undef SSC_SAMPLE_DISTINCT_INSTANCE

}  // namespace ssc::cuda
