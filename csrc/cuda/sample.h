// Draws on the GPU: the same ids as csrc/cpu/sample.h for the same key. Keys are read from device
// memory and nothing waits or allocates, so a draw can be captured in a CUDA graph and gives new
// negatives at each replay after its key was advanced there.
#pragma once

#include <cstdint>

#include "csrc/core/alias_table.h"
#include "csrc/core/log_uniform.h"
#include "csrc/core/logit_correction.h"
#include "csrc/cuda/device.h"

namespace ssc::cuda {

// A proposal as a kernel's parameter: the class that 64 random bits draw, and the probability of a
// class (kNoClass for an id outside [0, num_classes)).
struct UniformProposal {
  uint64_t num_classes;

  __device__ int64_t draw(uint64_t bits) const;
  __device__ double probability(int64_t id) const;
};

struct LogUniformProposal {
  LogUniform parameters;
  double exp2_table[16];  // kExp2Table: kernels index it, so it has to be in their memory

  __device__ int64_t draw(uint64_t bits) const;
  __device__ double probability(int64_t id) const;
};

struct WeightedProposal {
  AliasTable table;             // entries in device memory
  const double* probabilities;  // [num_classes] in device memory

  __device__ int64_t draw(uint64_t bits) const;
  __device__ double probability(int64_t id) const;
};

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
