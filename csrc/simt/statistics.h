// The cost of the launches' memory accesses, per line of the kernels' source.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ssc::simt {

struct LineStatistics {
  std::string file;
  int line;
  std::string function, kernel;
  std::string kind;       // "global load", "shared store", "ldmatrix", ...
  uint64_t instructions;  // of warps
  uint64_t lanes;         // active ones, over all instructions
  uint64_t bytes;         // asked for, over all lanes
  uint64_t transfers;     // global: 32-byte sectors; shared: wavefronts
  uint64_t ideal;         // the same, if the bytes lay side by side
};

std::vector<LineStatistics> statistics();
void clear_statistics();

}  // namespace ssc::simt
