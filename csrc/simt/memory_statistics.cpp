#include "csrc/simt/memory_statistics.h"

#include <algorithm>
#include <array>
#include <map>
#include <tuple>
#include <unordered_map>

#include "csrc/simt/statistics.h"
#include "csrc/simt/symbols.h"

namespace ssc::simt {
namespace {

constexpr uint32_t kLanes = 32, kSector = 32, kBanks = 32, kBankBytes = 4;

enum class Kind : uint8_t {
  global_load,
  global_store,
  global_atomic,
  shared_load,
  shared_store,
  shared_atomic,
  ldmatrix,
};

struct LaneAccess {
  uint64_t address;  // global: the address; shared: the offset from the variable's start
  uint32_t bytes;
  uint32_t lane;
};

// A warp instruction that some of its lanes have executed.
using Instruction = std::vector<LaneAccess>;

struct Visits {
  std::array<uint32_t, kLanes> count{};  // by lane
  std::vector<Instruction> instructions;
};

struct Totals {
  uint64_t instructions = 0, lanes = 0, bytes = 0, transfers = 0, ideal = 0;
};

using Key = std::tuple<const void*, const void*, Kind>;  // kernel, return address

// A return address and the kind of access: cp.async both reads and writes.
using Place = uint64_t;
Place place(const void* pc, Kind kind) {
  return reinterpret_cast<uint64_t>(pc) << 3 | static_cast<uint64_t>(kind);
}
const void* pc_of(Place place) { return reinterpret_cast<const void*>(place >> 3); }
Kind kind_of(Place place) { return static_cast<Kind>(place & 7); }

std::map<Key, Totals> totals;
std::array<std::unordered_map<Place, Visits>, kMaxThreads / kLanes> warps;

bool is_shared(Kind kind) { return kind >= Kind::shared_load; }

// How many lanes the hardware serves at a time: 4-byte accesses of the whole warp, 8-byte ones of
// half of it, 16-byte ones of a quarter; ldmatrix the eight rows of a matrix.
uint32_t lanes_at_a_time(const Instruction& instruction, Kind kind) {
  if (kind == Kind::ldmatrix) return 8;
  uint32_t widest = 0;
  for (const LaneAccess& access : instruction) widest = std::max(widest, access.bytes);
  return widest <= 4 ? 32 : widest <= 8 ? 16 : 8;
}

// The number of distinct units of `unit` bytes that the accesses touch.
std::vector<uint64_t> units(const LaneAccess* begin, const LaneAccess* end, uint32_t unit) {
  std::vector<uint64_t> touched;
  for (; begin != end; ++begin) {
    const uint64_t last = (begin->address + begin->bytes - 1) / unit;
    for (uint64_t u = begin->address / unit; u <= last; ++u) touched.push_back(u);
  }
  std::ranges::sort(touched);
  touched.erase(std::unique(touched.begin(), touched.end()), touched.end());
  return touched;
}

uint64_t ceil_divide(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

void add_sectors(const Instruction& instruction, Totals& sum) {
  const LaneAccess* begin = instruction.data();
  const LaneAccess* end = begin + instruction.size();
  sum.transfers += units(begin, end, kSector).size();
  sum.ideal += ceil_divide(units(begin, end, 1).size(), kSector);
}

// A wavefront serves one word of each bank. Lanes that are served together share equal words.
void add_wavefronts(Instruction& instruction, Kind kind, Totals& sum) {
  const uint32_t at_a_time = lanes_at_a_time(instruction, kind);
  std::ranges::stable_sort(instruction, {}, &LaneAccess::lane);
  for (size_t first = 0; first < instruction.size();) {
    const uint32_t phase = instruction[first].lane / at_a_time;
    size_t end = first;
    while (end < instruction.size() && instruction[end].lane / at_a_time == phase) ++end;
    const std::vector<uint64_t> words =
        units(&instruction[first], instruction.data() + end, kBankBytes);
    std::array<uint32_t, kBanks> per_bank{};
    for (const uint64_t word : words) ++per_bank[word % kBanks];
    sum.transfers += std::ranges::max(per_bank);
    sum.ideal += ceil_divide(words.size(), kBanks);
    first = end;
  }
}

void finish(const void* pc, Kind kind, Instruction& instruction) {
  Totals& sum = totals[{running.call->kernel, pc, kind}];
  ++sum.instructions;
  sum.lanes += instruction.size();
  for (const LaneAccess& access : instruction) sum.bytes += access.bytes;
  if (is_shared(kind)) {
    add_wavefronts(instruction, kind, sum);
  } else {
    add_sectors(instruction, sum);
  }
}

void add(const void* pc, Kind kind, LaneAccess access) {
  Visits& visits = warps[running.current->warp()][place(pc, kind)];
  const uint32_t visit = visits.count[access.lane]++;
  if (visits.instructions.size() <= visit) visits.instructions.resize(visit + 1);
  visits.instructions[visit].push_back(access);
}

const char* kind_name(Kind kind) {
  constexpr const char* kNames[] = {"global load",  "global store",  "global atomic", "shared load",
                                    "shared store", "shared atomic", "ldmatrix"};
  return kNames[static_cast<size_t>(kind)];
}

}  // namespace

void count_access(const void* pc, bool shared, Access access, uintptr_t address, uintptr_t origin,
                  uint32_t bytes) {
  const auto first = shared ? Kind::shared_load : Kind::global_load;
  const auto kind = static_cast<Kind>(static_cast<uint8_t>(first) + static_cast<uint8_t>(access));
  add(pc, kind, {shared ? address - origin : address, bytes, running.current->lane()});
}

void count_matrix_row(const void* pc, uintptr_t address, uintptr_t origin) {
  add(pc, Kind::ldmatrix, {address - origin, 16, running.current->lane()});
}

void statistics_start_launch() {}

void statistics_start_block() {
  for (auto& warp : warps) warp.clear();
}

void statistics_flush_warp(uint32_t warp) {
  if (!running.options.statistics) return;
  for (auto& [place, visits] : warps[warp]) {
    for (Instruction& instruction : visits.instructions) {
      finish(pc_of(place), kind_of(place), instruction);
    }
    visits.instructions.clear();
    visits.count.fill(0);
  }
}

void statistics_flush() {
  for (uint32_t warp = 0; warp * kLanes < running.thread_count; ++warp) statistics_flush_warp(warp);
}

std::vector<LineStatistics> statistics() {
  std::vector<uint64_t> pcs;
  for (const auto& [key, sum] : totals) pcs.push_back(reinterpret_cast<uint64_t>(std::get<1>(key)));
  load_lines(pcs);
  std::map<std::tuple<std::string, int, std::string, std::string, std::string>, Totals> by_line;
  for (const auto& [key, sum] : totals) {
    const auto& [kernel, pc, kind] = key;
    const Line line = kernel_line_of(reinterpret_cast<uint64_t>(pc));
    Totals& total =
        by_line[{line.file, line.line, line.function, kernel_name(kernel), kind_name(kind)}];
    total.instructions += sum.instructions;
    total.lanes += sum.lanes;
    total.bytes += sum.bytes;
    total.transfers += sum.transfers;
    total.ideal += sum.ideal;
  }
  std::vector<LineStatistics> result;
  for (const auto& [key, total] : by_line) {
    const auto& [file, line, function, kernel, kind] = key;
    result.push_back({file, line, function, kernel, kind, total.instructions, total.lanes,
                      total.bytes, total.transfers, total.ideal});
  }
  return result;
}

void clear_statistics() { totals.clear(); }

}  // namespace ssc::simt
