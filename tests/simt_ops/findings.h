// An executor's findings in the launches so far.
#pragma once

#include <string>

namespace ssc::ops::cuda {

// A line for each finding, which is forgotten then.
std::string take_findings();

}  // namespace ssc::ops::cuda
