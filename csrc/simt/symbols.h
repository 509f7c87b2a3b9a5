// Names and source places of this library's code and data, from its own symbol table and line
// numbers (build with -g1, don't strip).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ssc::simt {

// A static shared variable: a thread_local one of this library.
struct SharedVariable {
  uint64_t offset, bytes;  // in the library's thread-local block
  std::string name;        // "kernel(float*)::tile"
  bool guard;              // the unused bytes in front of a variable
};

struct Line {
  std::string file;
  int line = 0;
  std::string function;
};

std::string kernel_name(const void* kernel);
// The lines of a return address, innermost inlined function first.
std::vector<Line> lines_of(uint64_t pc);
// "file:line (function)", with the callers that it was inlined into.
std::string place_text(uint64_t pc);
// Looks up many at once, which is faster than one by one.
void load_lines(const std::vector<uint64_t>& pcs);
// In the order of their offsets.
const std::vector<SharedVariable>& shared_variables();
// The calling OS thread's copy of the library's thread-local block, and its size.
unsigned char* thread_local_block();
uint64_t thread_local_bytes();
// Whether the address lies in this library's image (code, constants, static data).
bool in_image(const void* address);

}  // namespace ssc::simt
