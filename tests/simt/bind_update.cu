// A step of csrc/cuda/update for the bench, with all of its launches.
#include "csrc/cuda/update/update.h"
#include "csrc/simt/registry.h"

namespace {

using namespace ssc;
using namespace ssc::cuda;

cudaError_t workspace_bytes(int64_t count, bool chosen, bool owes, int64_t* bytes) {
  *bytes = update_rows_bytes(count, chosen, owes);
  return cudaSuccess;
}

// numbers: as large as `numbers_bytes` says. Without values debts are paid.
template <class P, class S>
cudaError_t update(P* param, int64_t rows, int64_t dim, const P* values, const int64_t* ids,
                   const int64_t* order, int64_t count, S* first, S* second, float* row_second,
                   P* compensation, int32_t* last_step, double* history, int64_t capacity,
                   int64_t horizon, float* step, const double* lr, int rule, double beta1,
                   double beta2, double eps, double l2, double decay, bool replay, int rounding,
                   int64_t seed, void* numbers, void* workspace, cudaStream_t stream) {
  const UpdateOptions options = {static_cast<UpdateRule>(rule),
                                 0.0,
                                 beta1,
                                 beta2,
                                 eps,
                                 l2,
                                 decay,
                                 0.0,
                                 0.0,
                                 1.0,
                                 false,
                                 replay,
                                 false};
  const UpdateHistory past = {history, capacity, horizon};
  const RowUpdate<P, S> u = {param,
                             rows,
                             dim,
                             dim,
                             rows * dim,
                             values,
                             ids,
                             order,
                             count,
                             first,
                             second,
                             row_second,
                             compensation,
                             last_step,
                             past,
                             options.rule,
                             static_cast<Rounding>(rounding),
                             static_cast<uint64_t>(seed)};
  auto* const of_step = static_cast<StepNumbers*>(numbers);
  const bool steps = values != nullptr;
  cudaError_t error = begin_step(options, {step, lr, nullptr, nullptr}, steps, of_step, stream);
  if (error == cudaSuccess) error = update_rows(u, of_step, workspace, stream);
  if (error == cudaSuccess && steps) error = close_step(of_step, past, step, stream);
  return error;
}

}  // namespace

SSC_SIMT_LAUNCHER(
    "update_numbers_bytes", +[](int64_t* bytes) {
      *bytes = sizeof(StepNumbers);
      return cudaSuccess;
    });
SSC_SIMT_LAUNCHER("update_workspace_bytes", workspace_bytes);
SSC_SIMT_LAUNCHER("update_float32_float32", (update<float, float>));
SSC_SIMT_LAUNCHER("update_bfloat16_bfloat16", (update<__nv_bfloat16, __nv_bfloat16>));
