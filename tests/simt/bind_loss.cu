// The forward stages of csrc/cuda/loss.h for the bench: one launcher per storage type.
#include "csrc/cuda/loss.h"
#include "csrc/simt/registry.h"

namespace {

using namespace ssc;
using namespace ssc::cuda;

template <class T>
cudaError_t loss_rows(const T* input, const T* weight, const T* bias, const int64_t* target,
                      const int64_t* ids, const float* log_count, const float* target_log_count,
                      int64_t batch, int64_t dim, int64_t classes, int64_t samples,
                      int64_t input_stride, int64_t weight_stride, int64_t ignore_index,
                      double inv_temperature, bool remove_hits, int splits, bool tf32,
                      typename AccumulatorOf<T>::Type* results,  // [4][batch]
                      OnlineLse<typename AccumulatorOf<T>::Type>* parts, uint8_t* beaten,
                      typename AccumulatorOf<T>::Type* logits, cudaStream_t stream) {
  using A = typename AccumulatorOf<T>::Type;
  const LossProblem<T> problem = {input,   weight,       input_stride,
                                  weight_stride, bias,   target,
                                  ids,     log_count,    target_log_count,
                                  batch,   dim,          classes,
                                  samples, ignore_index, static_cast<A>(inv_temperature),
                                  remove_hits};
  const RowResults<A> out = {results, results + batch, results + 2 * batch, results + 3 * batch};
  const RowParts<A> row_parts = {parts, beaten, splits};
  if (const cudaError_t e = target_logits(problem, out, stream); e != cudaSuccess) return e;
  const Precision precision = tf32 ? Precision::tf32 : Precision::exact;
  if (const cudaError_t e = score(problem, out, row_parts, logits, samples, precision, stream);
      e != cudaSuccess) {
    return e;
  }
  return finish_rows(problem, out, row_parts, stream);
}

}  // namespace

SSC_SIMT_LAUNCHER("loss_rows_float32", loss_rows<float>);
SSC_SIMT_LAUNCHER("loss_rows_float64", loss_rows<double>);
SSC_SIMT_LAUNCHER("loss_rows_bfloat16", loss_rows<__nv_bfloat16>);
SSC_SIMT_LAUNCHER("loss_rows_float16", loss_rows<__half>);
