#include "tests/simt_ops/findings.h"

#include <ptx.h>

namespace ssc::ops::cuda {

std::string take_findings() {
  std::string text;
  for (const ptx::Finding& finding : ptx::findings) {
    text += "\n" + finding.kind + " at " + finding.place + ": " + finding.message;
  }
  ptx::findings.clear();
  return text;
}

}  // namespace ssc::ops::cuda
