#include "csrc/simt/registry.h"

namespace ssc::simt {

std::vector<Launcher>& launchers() {
  static std::vector<Launcher> all;
  return all;
}

}  // namespace ssc::simt
