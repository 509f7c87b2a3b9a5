#include "csrc/simt/report.h"

#include <algorithm>
#include <iomanip>

#include "csrc/simt/symbols.h"

namespace ssc::simt {
namespace {

struct Entry {
  Finding finding;
  const void* pc;
  std::string message;
  uint64_t count;
};

std::vector<Entry> entries;
size_t total = 0;

// Places stand in messages as \1<address>\2 until somebody reads them.
constexpr char kPlaceStart = '\1', kPlaceEnd = '\2';

std::string fill_in_places(const std::string& text) {
  std::string result;
  for (size_t at = 0; at < text.size();) {
    const size_t start = text.find(kPlaceStart, at);
    result += text.substr(at, start == std::string::npos ? start : start - at);
    if (start == std::string::npos) break;
    const size_t end = text.find(kPlaceEnd, start);
    const uint64_t pc = std::stoull(text.substr(start + 1, end - start - 1), nullptr, 16);
    result += place_text(pc);
    at = end + 1;
  }
  return result;
}

std::string index_text(uint3 i) {
  std::ostringstream text;
  text << "(" << i.x << ", " << i.y << ", " << i.z << ")";
  return text.str();
}

std::string what_waits(const Thread& thread) {
  switch (thread.state) {
    case State::warp_wait:
      return std::string("at ") + op_name(thread.exchange.op) + ", mask " +
             hex(thread.exchange.mask) + ", " + place_of(thread.pc);
    case State::barrier_wait:
      return "at a barrier, " + place_of(thread.pc);
    case State::done:
      return "exited";
    case State::unstarted:
      return "not started";
    default:
      return "able to go on";
  }
}

}  // namespace

void add_finding(Finding finding, const void* pc, std::string message) {
  ++total;
  for (Entry& entry : entries) {
    if (entry.finding == finding && entry.pc == pc) {
      ++entry.count;
      return;
    }
  }
  if (entries.size() >= running.options.max_findings) return;
  std::string where;
  if (running.call != nullptr) {
    where = " [kernel " + kernel_name(running.call->kernel) + ", block " +
            index_text(running.block_index);
    if (running.current != nullptr) where += ", " + thread_name(*running.current);
    where += "]";
  }
  const size_t first_line = std::min(message.find('\n'), message.size());
  message.insert(first_line, where);
  entries.push_back({finding, pc, std::move(message), 1});
}

std::string thread_name(const Thread& thread) { return "thread " + index_text(thread.index); }

std::string hex(uint64_t value) {
  std::ostringstream text;
  text << "0x" << std::hex << value;
  return text.str();
}

std::string place_of(const void* pc) {
  return kPlaceStart + hex(reinterpret_cast<uintptr_t>(pc)) + kPlaceEnd;
}

std::string waiting_threads() {
  std::string text;
  const uint32_t n = running.thread_count;
  for (uint32_t i = 0; i < n;) {
    const std::string what = what_waits(running.threads[i]);
    uint32_t end = i + 1;
    while (end < n && what_waits(running.threads[end]) == what) ++end;
    text += end == i + 1 ? "\n  thread " : "\n  threads " + std::to_string(i) + " to ";
    text += std::to_string(end - 1) + ": " + what;
    i = end;
  }
  return text;
}

const char* op_name(Op op) {
  switch (op) {
    case Op::sync:
      return "__syncwarp";
    case Op::shuffle:
      return "__shfl_sync";
    case Op::shuffle_up:
      return "__shfl_up_sync";
    case Op::shuffle_down:
      return "__shfl_down_sync";
    case Op::shuffle_xor:
      return "__shfl_xor_sync";
    case Op::ballot:
      return "__ballot_sync";
    case Op::any:
      return "__any_sync";
    case Op::all:
      return "__all_sync";
    case Op::match_any:
      return "__match_any_sync";
    case Op::match_all:
      return "__match_all_sync";
    case Op::add:
      return "__reduce_add_sync";
    case Op::min_signed:
    case Op::min_unsigned:
      return "__reduce_min_sync";
    case Op::max_signed:
    case Op::max_unsigned:
      return "__reduce_max_sync";
    case Op::bit_and:
      return "__reduce_and_sync";
    case Op::bit_or:
      return "__reduce_or_sync";
    case Op::bit_xor:
      return "__reduce_xor_sync";
    case Op::ldmatrix:
      return "ldmatrix";
    case Op::mma:
      return "mma.sync";
  }
  return "?";
}

const char* finding_name(Finding finding) {
  constexpr const char* kNames[] = {"race",          "bounds", "uninitialised", "misaligned",
                                    "barrier",       "exited", "collective",    "deadlock",
                                    "configuration", "trap"};
  return kNames[static_cast<size_t>(finding)];
}

size_t finding_count() { return total; }

std::vector<Report> findings() {
  std::vector<Report> reports;
  for (const Entry& entry : entries) {
    const auto pc = reinterpret_cast<uint64_t>(entry.pc);
    reports.push_back(
        {entry.finding, fill_in_places(entry.message), pc == 0 ? "" : place_text(pc), entry.count});
  }
  return reports;
}

void clear_findings() {
  entries.clear();
  total = 0;
}

}  // namespace ssc::simt
