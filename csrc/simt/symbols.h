// Names and source places of this library's code and data, from its own symbol table and line
// numbers (build with -g1, don't strip).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ssc::simt {

// A thread_local variable of this library. A kernel's __shared__ ones are that, with a guard,
// unused bytes, in front of each; foreign are those of pybind11, the standard library and the
// compiler.
enum class TlsKind : uint8_t { shared, guard, foreign };
struct SharedVariable {
  uint64_t offset, bytes;  // in the library's thread-local block
  std::string name;        // "kernel(float*)::tile"
  TlsKind kind;
};

struct Line {
  std::string file;
  int line = 0;
  std::string function;
};

std::string kernel_name(const void* kernel);
// The bytes of the __shared__ variables that the kernel itself declares, not a function it calls.
uint64_t static_shared_bytes(const void* kernel);
// The lines of a return address, innermost inlined function first.
std::vector<Line> lines_of(uint64_t pc);
// The innermost line that is the kernel's own, not one of a wrapper around an instruction.
Line kernel_line_of(uint64_t pc);
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
// A code address as a number that fits into a few bits, and back.
uint32_t image_offset(const void* pc);
const void* image_address(uint32_t offset);

}  // namespace ssc::simt
