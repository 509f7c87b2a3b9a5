#include "tests/simt_ops/findings.h"

#include "csrc/simt/report.h"

namespace ssc::ops::cuda {

std::string take_findings() {
  std::string text;
  for (const simt::Report& report : simt::findings()) {
    text += std::string("\n") + simt::finding_name(report.finding) + " at " + report.place + ": " +
            report.message;
  }
  simt::clear_findings();
  return text;
}

}  // namespace ssc::ops::cuda
