// Errors of the CUDA runtime that a function returns.
#pragma once

#include <cuda_runtime_api.h>

namespace ssc::cuda {

// The error, which is the thread's last one no more: whoever asks for that after a launch of his
// own (cudaGetLastError, as torch does) would take ours for his.
inline cudaError_t returned(cudaError_t error) {
  if (error != cudaSuccess) static_cast<void>(cudaGetLastError());
  return error;
}

}  // namespace ssc::cuda
