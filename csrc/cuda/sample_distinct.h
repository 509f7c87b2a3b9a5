// Draws without replacement: the first S distinct ids of the stream of draws, in the order of the
// draws, exactly csrc/cpu/sample.h's sample_distinct. As with replacement, nothing waits, allocates
// or is read back.
#pragma once

#include "csrc/cuda/proposal.h"

namespace ssc::cuda {

// Bytes of workspace for S samples: at most 145 S and 66 KiB. Nothing grows with C.
int64_t distinct_bytes(int64_t num_samples);

// ids [S], and how many draws they took [1]. The caller sees to it that there are S classes to find
// and that this takes no more than a few draws per class (else: sample_race.h). After a thousand
// draws per class the search ends: ids that are missing, and num_draws, are then −1. The workspace
// is aligned to 256 bytes and may hold anything.
template <class Proposal>
cudaError_t draw_distinct(const Proposal& proposal, const int64_t* key, int64_t num_samples,
                          int64_t* ids, int64_t* num_draws, void* workspace, cudaStream_t stream);

}  // namespace ssc::cuda
