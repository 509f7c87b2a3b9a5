// The part of the CUDA runtime that launchers call.
#pragma once

#include "csrc/simt/launch.h"

namespace ssc::simt {

// Whether hardware would accept the launch; reports why not.
cudaError_t check_configuration(const Call& call, dim3 grid, dim3 block, size_t shared_bytes);
cudaError_t set_last_error(cudaError_t error);

}  // namespace ssc::simt
