// The inner loops of sampling, one table of functions per instruction set, all with the same bits.
// Each is a map over short arrays that stay in the L1 cache: random bits -> ids -> probabilities ->
// log counts. csrc/cpu/sample/sample.cpp strings them together.
#pragma once

#include <cstdint>

#include "csrc/core/alias_table.h"
#include "csrc/core/log_uniform.h"
#include "csrc/core/logit_correction.h"
#include "csrc/core/philox.h"
#include "csrc/core/uniform.h"
#include "csrc/cpu/base/isa.h"

namespace ssc {

struct SampleKernels {
  // The 64 bits of draws first .. first + n - 1 of the key; first is even.
  void (*philox)(PhiloxKey key, uint64_t first, int64_t n, uint64_t* bits);

  // Bits to class ids.
  void (*uniform)(const uint64_t* bits, int64_t n, uint64_t num_classes, int64_t* ids);
  void (*log_uniform)(const uint64_t* bits, int64_t n, const LogUniform& proposal, int64_t* ids);
  // Whether the ids are all classes; those of a table that is none may be anything.
  bool (*alias)(const uint64_t* bits, int64_t n, const AliasTable& table, int64_t* ids);

  // Probabilities of ids in [0, num_classes).
  void (*log_uniform_probability)(const int64_t* ids, int64_t n, const LogUniform& proposal,
                                  double* q);
  // Probabilities to log expected counts.
  void (*log_expected_count)(const double* q, int64_t n, const LogCount& count, float* out);
  // Random bits and the probability of each class to its arrival time.
  void (*arrival_time)(const uint64_t* bits, const double* q, int64_t n, double* out);
};

const SampleKernels& sample_kernels(Isa isa);

}  // namespace ssc
