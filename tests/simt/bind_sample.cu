// The draws of csrc/cuda/sample/sample.h for the bench.
#include "csrc/cuda/sample/sample.h"
#include "csrc/simt/registry.h"

namespace {

using namespace ssc;
using namespace ssc::cuda;

WeightedProposal weighted(const int64_t* table, const double* probabilities, int64_t classes) {
  const auto* entries = reinterpret_cast<const uint64_t*>(table);
  return {make_alias_table(entries, static_cast<uint64_t>(classes)), probabilities};
}

// Unless tries is given, with replacement.
LogCount log_count(int64_t num_samples) {
  return log_count_with_replacement(static_cast<uint64_t>(num_samples));
}

}  // namespace

SSC_SIMT_LAUNCHER(
    "draw_uniform",
    +[](int64_t classes, const int64_t* key, int64_t n, int64_t* ids, cudaStream_t stream) {
      return draw(UniformProposal{static_cast<uint64_t>(classes)}, key, n, ids, stream);
    });
SSC_SIMT_LAUNCHER(
    "draw_log_uniform",
    +[](int64_t classes, const int64_t* key, int64_t n, int64_t* ids, cudaStream_t stream) {
      return draw(log_uniform_proposal(static_cast<uint64_t>(classes)), key, n, ids, stream);
    });
SSC_SIMT_LAUNCHER(
    "draw_weighted", +[](const int64_t* table, const double* probabilities, int64_t classes,
                         const int64_t* key, int64_t n, int64_t* ids, cudaStream_t stream) {
      return draw(weighted(table, probabilities, classes), key, n, ids, stream);
    });
SSC_SIMT_LAUNCHER(
    "log_counts_uniform", +[](int64_t classes, const double* tries, int64_t num_samples,
                              const int64_t* ids, int64_t n, float* out, cudaStream_t stream) {
      return log_expected_counts(UniformProposal{static_cast<uint64_t>(classes)},
                                 log_count(num_samples), tries, ids, n, out, stream);
    });
SSC_SIMT_LAUNCHER(
    "log_counts_log_uniform", +[](int64_t classes, const double* tries, int64_t num_samples,
                                  const int64_t* ids, int64_t n, float* out, cudaStream_t stream) {
      return log_expected_counts(log_uniform_proposal(static_cast<uint64_t>(classes)),
                                 log_count(num_samples), tries, ids, n, out, stream);
    });
SSC_SIMT_LAUNCHER(
    "log_counts_weighted",
    +[](const int64_t* table, const double* probabilities, int64_t classes, const double* tries,
        int64_t num_samples, const int64_t* ids, int64_t n, float* out, cudaStream_t stream) {
      return log_expected_counts(weighted(table, probabilities, classes), log_count(num_samples),
                                 tries, ids, n, out, stream);
    });

SSC_SIMT_LAUNCHER(
    "distinct_bytes", +[](int64_t num_samples, int64_t* bytes) {
      *bytes = distinct_bytes(num_samples);
      return cudaSuccess;
    });
SSC_SIMT_LAUNCHER(
    "distinct_uniform", +[](int64_t classes, const int64_t* key, int64_t n, int64_t* ids,
                            int64_t* num_draws, void* workspace, cudaStream_t stream) {
      return draw_distinct(UniformProposal{static_cast<uint64_t>(classes)}, key, n, ids, num_draws,
                           workspace, stream);
    });
SSC_SIMT_LAUNCHER(
    "distinct_log_uniform", +[](int64_t classes, const int64_t* key, int64_t n, int64_t* ids,
                                int64_t* num_draws, void* workspace, cudaStream_t stream) {
      return draw_distinct(log_uniform_proposal(static_cast<uint64_t>(classes)), key, n, ids,
                           num_draws, workspace, stream);
    });
SSC_SIMT_LAUNCHER(
    "distinct_weighted",
    +[](const int64_t* table, const double* probabilities, int64_t classes, const int64_t* key,
        int64_t n, int64_t* ids, int64_t* num_draws, void* workspace, cudaStream_t stream) {
      return draw_distinct(weighted(table, probabilities, classes), key, n, ids, num_draws,
                           workspace, stream);
    });
SSC_SIMT_LAUNCHER(
    "arrival_times_uniform",
    +[](int64_t classes, const int64_t* key, int64_t first_row, int64_t rows, double* times,
        int64_t* numbers, cudaStream_t stream) {
      return arrival_times(UniformProposal{static_cast<uint64_t>(classes)}, key, first_row, rows,
                           times, numbers, stream);
    });
SSC_SIMT_LAUNCHER(
    "arrival_times_log_uniform",
    +[](int64_t classes, const int64_t* key, int64_t first_row, int64_t rows, double* times,
        int64_t* numbers, cudaStream_t stream) {
      return arrival_times(log_uniform_proposal(static_cast<uint64_t>(classes)), key, first_row,
                           rows, times, numbers, stream);
    });
SSC_SIMT_LAUNCHER(
    "arrival_times_weighted",
    +[](const int64_t* table, const double* probabilities, int64_t classes, const int64_t* key,
        int64_t first_row, int64_t rows, double* times, int64_t* numbers, cudaStream_t stream) {
      return arrival_times(weighted(table, probabilities, classes), key, first_row, rows, times,
                           numbers, stream);
    });
SSC_SIMT_LAUNCHER("bar_classes", bar_classes);
SSC_SIMT_LAUNCHER("first_arrivals", first_arrivals);
