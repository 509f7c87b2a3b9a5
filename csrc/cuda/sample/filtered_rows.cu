// A block per row, with a hash table of its own in the workspace (id_table.h). First go the ids of
// the row's list, as draws 0 .. E − 1, then those of the stream: a draw is good if it is not on the
// list and, where samples are distinct, the first of its id. A prefix sum gives each its place.
// Where a race has been run, the table serves the list alone.
//
// Global traffic of a row: 32 bytes for each slot of its table, at most 8/3 (S + E + 512) slots;
// two atomic functions and a load of 8 bytes for each draw, or 8 bytes for each arrival; 12 bytes
// out for each sample.
#include <algorithm>
#include <bit>

#include "csrc/core/rejection.h"
#include "csrc/cuda/device/block_scan.h"
#include "csrc/cuda/device/grid.h"
#include "csrc/cuda/sample/id_table.h"
#include "csrc/cuda/sample/sample.h"

namespace ssc::cuda {
namespace {

using Word = IdTable::Word;

constexpr int kThreads = 256;
constexpr int kStepDraws = 2 * kThreads;

template <class Proposal>
struct FilteredArguments {
  Proposal proposal;
  const int64_t* key;
  RowFilter filter;
  RowOutputs out;
  int64_t first_row, rows, samples;
  Word* tables;  // [blocks][2][capacity]
  Word capacity;
};

// The mass and the classes that a row's list takes away.
struct __align__(16) Lost {
  double mass;
  unsigned classes;  // of positive probability
};

// Offers the row's list to its empty table. For all threads, in the same order every time.
template <class Proposal>
__device__ __forceinline__ Lost exclude_row(const FilteredArguments<Proposal>& a,
                                            const IdTable& table, const int64_t* list,
                                            Lost (&of_warp)[kThreads / 32]) {
  const int64_t count = a.filter.num_excluded;
  const auto inside = [&](int64_t id) {
    return static_cast<uint64_t>(id) < num_classes(a.proposal);
  };
  for (int64_t j = threadIdx.x; j < count; j += kThreads) {
    if (inside(list[j])) table.offer(table.slot_of(list[j]), static_cast<Word>(j));
  }
  __syncthreads();
  Lost lost = {0.0, 0};
  for (int64_t j = threadIdx.x; j < count; j += kThreads) {
    if (!inside(list[j]) || !table.is_first(table.slot_of(list[j]), static_cast<Word>(j))) continue;
    const double q = a.proposal.probability(list[j]);
    lost.mass += q;
    lost.classes += q > 0.0;
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    lost.mass += __shfl_xor_sync(~0u, lost.mass, offset);
    lost.classes += __shfl_xor_sync(~0u, lost.classes, offset);
  }
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = lost;
  __syncthreads();
  lost = {0.0, 0};
  for (const Lost& part : of_warp) {
    lost.mass += part.mass;
    lost.classes += part.classes;
  }
  __syncthreads();
  return lost;
}

// The row's ids in order, unless null, and the number of its draws in *draws. False if they don't
// come.
template <class Proposal>
__device__ __forceinline__ bool draw_row(const FilteredArguments<Proposal>& a, const IdTable& table,
                                         const PhiloxKey& key, double left, int64_t* ids,
                                         ScanShared<kThreads>& scan, int64_t* draws) {
  const auto wanted = static_cast<Word>(a.samples);
  const auto excluded = static_cast<Word>(a.filter.num_excluded);
  const double most = a.filter.distinct ? most_distinct_draws(num_classes(a.proposal))
                                        : most_draws(a.samples, left);
  Word found = 0, allowed = 0;
  for (Word base = 0; found < wanted && static_cast<double>(base) < most; base += kStepDraws) {
    const Word draw = base + 2 * threadIdx.x;
    const TwoIds drawn = two_draws(a.proposal, key, draw / 2);
    const Word slots[2] = {table.slot_of(drawn.first), table.slot_of(drawn.second)};
    table.offer(slots[0], excluded + draw);
    table.offer(slots[1], excluded + draw + 1);
    __syncthreads();
    bool off_list[2], good[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const Word first = table.first(slots[k]);
      off_list[k] = first >= excluded;
      good[k] = a.filter.distinct ? first == excluded + draw + static_cast<Word>(k) : off_list[k];
    }
    // Both counts in one word: a step has fewer than 2^16 draws.
    const unsigned counts = (unsigned{good[0]} + unsigned{good[1]}) |
                            (unsigned{off_list[0]} + unsigned{off_list[1]}) << 16;
    const PrefixSum sum = prefix_sum(counts, scan);
    Word rank = found + (sum.before & 0xffffu);
    Word taken = allowed + (sum.before >> 16);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      taken += off_list[k];
      if (!good[k]) continue;
      if (rank < wanted && ids != nullptr) ids[rank] = k == 0 ? drawn.first : drawn.second;
      if (rank + 1 == wanted) *draws = static_cast<int64_t>(taken);
      ++rank;
    }
    found += sum.total & 0xffffu;
    allowed += sum.total >> 16;
  }
  __syncthreads();
  return found >= wanted;
}

// The same, for a row whose race has been run.
template <class Proposal>
__device__ __forceinline__ void take_arrivals(const FilteredArguments<Proposal>& a, int64_t row,
                                              double left, int64_t* ids, int64_t* draws) {
  if (a.samples == 0) return;
  const int64_t first = row * race_stride(static_cast<int64_t>(num_classes(a.proposal)));
  for (int64_t s = threadIdx.x; ids != nullptr && s < a.samples; s += kThreads) {
    ids[s] = a.filter.arrivals[first + s];
  }
  if (threadIdx.x == 0) {
    *draws = draws_of_race(a.filter.arrival_times[first + a.samples - 1] * left, a.samples);
  }
  __syncthreads();
}

// Four blocks: unasked, ptxas aims at five on 12.0 and spills.
template <class Proposal>
__global__ void __launch_bounds__(kThreads, 4)
    draw_filtered_rows_kernel(const __grid_constant__ FilteredArguments<Proposal> a) {
  __shared__ ScanShared<kThreads> scan;
  __shared__ Lost of_warp[kThreads / 32];
  __shared__ int64_t draws;
  Word* const own = a.tables + static_cast<Word>(blockIdx.x) * 2 * a.capacity;
  const IdTable table = {own, own + a.capacity, a.capacity - 1,
                         64 - (__ffsll(static_cast<long long>(a.capacity)) - 1)};
  const PhiloxKey key = load_key(a.key);
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    for (Word i = threadIdx.x; i < 2 * a.capacity; i += kThreads) own[i] = 0;
    if (threadIdx.x == 0) draws = a.samples;
    __syncthreads();
    const Lost lost =
        exclude_row(a, table, a.filter.exclude + row * a.filter.num_excluded, of_warp);
    const double left = 1.0 - (lost.mass < 1.0 ? lost.mass : 1.0);
    const uint64_t needed = a.filter.distinct ? static_cast<uint64_t>(a.samples) : 1;
    bool there = a.samples == 0 || (a.filter.num_drawable >= lost.classes + needed &&
                                    left >= (a.filter.distinct ? kLeastLeftDistinct : kLeastLeft));
    int64_t* const ids = a.out.ids == nullptr ? nullptr : a.out.ids + row * a.samples;
    double tries = a.filter.device_tries == nullptr ? a.filter.tries : *a.filter.device_tries;
    const bool observed = a.filter.distinct && tries != tries;
    if (there && (ids != nullptr || observed)) {
      if (a.filter.race) {
        take_arrivals(a, row, left, ids, &draws);
      } else {
        there = draw_row(a, table, row_key(key, a.first_row + row), left, ids, scan, &draws);
      }
    }
    if (observed) tries = static_cast<double>(draws);
    const LogCount count = as_correction(
        a.filter.distinct ? log_count_distinct(tries)
                          : log_count_with_replacement(static_cast<uint64_t>(a.samples)));
    const auto log_count = [&](int64_t id) {
      if (!there) return __int_as_float(0x7fc00000);  // NaN
      double q = a.proposal.probability(id);
      if (left != 1.0 && q >= 0.0) {
        q /= left;
        q = q > 1.0 ? 1.0 : q;
      }
      return static_cast<float>(log_expected_count<ScalarLane>(q, count));
    };
    for (int64_t s = threadIdx.x; ids != nullptr && s < a.samples; s += kThreads) {
      if (!there) ids[s] = -1;
      if (a.out.log_count != nullptr) a.out.log_count[row * a.samples + s] = log_count(ids[s]);
    }
    for (int64_t t = threadIdx.x; t < a.out.num_targets; t += kThreads) {
      const int64_t at = row * a.out.num_targets + t;
      a.out.target_log_count[at] = log_count(a.out.targets[at]);
    }
    if (a.out.num_draws != nullptr && threadIdx.x == 0) a.out.num_draws[row] = there ? draws : -1;
    __syncthreads();  // the table and `draws` are the next row's
  }
}

int64_t capacity_of(const RowFilter& filter, int64_t samples) {
  // With replacement, each draw that is not on the list may be a new id too: a step more than S.
  const int64_t most = filter.num_excluded + (filter.race ? 0 : samples + kStepDraws);
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(ceil_div(most * 4, 3))));
}

}  // namespace

int64_t filtered_rows_bytes(const RowFilter& filter, int64_t samples, int64_t blocks) {
  return blocks * 2 * capacity_of(filter, samples) * static_cast<int64_t>(sizeof(Word));
}

int64_t filtered_rows_blocks(const RowFilter& filter, int64_t samples, int64_t rows,
                             int64_t most_bytes) {
  constexpr int64_t kMostBlocks = 1024;
  const int64_t within = most_bytes / filtered_rows_bytes(filter, samples, 1);
  return std::max<int64_t>(std::min({within, rows, kMostBlocks}), 1);
}

template <class Proposal>
cudaError_t draw_filtered_rows(const Proposal& proposal, const int64_t* key,
                               const RowFilter& filter, int64_t first_row, int64_t rows,
                               int64_t samples, const RowOutputs& out, void* workspace,
                               int64_t blocks, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  const FilteredArguments<Proposal> arguments = {proposal,
                                                 key,
                                                 filter,
                                                 out,
                                                 first_row,
                                                 rows,
                                                 samples,
                                                 static_cast<Word*>(workspace),
                                                 static_cast<Word>(capacity_of(filter, samples))};
  return launch(draw_filtered_rows_kernel<Proposal>, static_cast<unsigned>(blocks), kThreads, 0,
                stream, arguments);
}

#define SSC_DRAW_FILTERED_ROWS_INSTANCE(Proposal)                                              \
  template cudaError_t draw_filtered_rows(const Proposal&, const int64_t*, const RowFilter&,   \
                                          int64_t, int64_t, int64_t, const RowOutputs&, void*, \
                                          int64_t, cudaStream_t)
SSC_FOR_PROPOSALS(SSC_DRAW_FILTERED_ROWS_INSTANCE);
#undef SSC_DRAW_FILTERED_ROWS_INSTANCE

}  // namespace ssc::cuda
