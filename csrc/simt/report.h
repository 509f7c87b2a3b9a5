// Findings: what was wrong in a launch, where, and by whom.
#pragma once

#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include "csrc/simt/executor.h"

namespace ssc::simt {

enum class Finding : uint8_t {
  race,
  bounds,
  uninitialised,
  misaligned,
  barrier,
  exited,
  collective,
  deadlock,
  configuration,
  trap,
};
const char* finding_name(Finding finding);

struct Report {
  Finding finding;
  std::string message;  // with the places of code filled in
  std::string place;    // file:line (function), innermost first
  uint64_t count;       // how often at this place
};

// Records a finding at a return address in a kernel; the running thread and block are added. Never
// throws or looks up symbols: it runs on a fiber's small stack.
void add_finding(Finding finding, const void* pc, std::string message);

template <class... Parts>
void report(Finding finding, const void* pc, const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  add_finding(finding, pc, text.str());
}

// Parts of messages. Places are looked up when the reports are read.
std::string thread_name(const Thread& thread);  // "thread (3, 0, 0)"
std::string hex(uint64_t value);
std::string place_of(const void* pc);
std::string waiting_threads();  // one line per group of threads that wait for the same
const char* op_name(Op op);

size_t finding_count();
std::vector<Report> findings();
void clear_findings();

}  // namespace ssc::simt
