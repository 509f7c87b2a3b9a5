// Draws on the GPU: the same ids as csrc/cpu/sample.h for the same key. Keys are read from device
// memory and nothing waits or allocates, so a draw can be captured in a CUDA graph and gives new
// negatives at each replay after its key was advanced there.
#pragma once

#include <cstdint>

#include "csrc/cuda/proposal.h"

namespace ssc::cuda {

LogUniformProposal log_uniform_proposal(uint64_t num_classes);

// ids[i] = the class of draw i of the key (int64[2]: seed, offset), i < num_samples. All pointers
// are to device memory; ids is 16-byte aligned.
template <class Proposal>
cudaError_t draw(const Proposal& proposal, const int64_t* key, int64_t num_samples, int64_t* ids,
                 cudaStream_t stream);

// out[i] = log n of ids[i], i < count. tries: null, or the t of S distinct classes in device
// memory, which then stands for that of log_count.
template <class Proposal>
cudaError_t log_expected_counts(const Proposal& proposal, const LogCount& log_count,
                                const double* tries, const int64_t* ids, int64_t count, float* out,
                                cudaStream_t stream);

}  // namespace ssc::cuda
