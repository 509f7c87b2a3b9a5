// dWs = E^T (scaled H) for one panel of samples.
//
// The roles are swapped: the vectors run over the samples, where E's panel is contiguous, and the
// scaled H is broadcast, so a panel of E is read from L2 and nothing is transposed on the way in.
// The result [D][P] is transposed on the way out, once, in registers.
#include "csrc/cpu/kernels/next_panel.h"
#include "csrc/cpu/kernels/register_tile.h"
#include "csrc/cpu/kernels/stages.h"
#include "csrc/cpu/kernels/transposed_rows.h"

namespace ssc::SSC_ISA {
namespace {

// Words of E's panel, of a row or a pair of rows each, that are taken at a time, so that they stay
// in L1 for all columns of H.
constexpr int64_t kPartWords = 256;

template <class T>
struct Product {
  // out[j][0:P] (+)= Σ_k a[k][j] · e[k][0:P] for M columns j of the scaled H, words k of one part,
  // which starts at e.
  template <int M>
  struct Body {
    static void run(const T* a, const T* e, Range part, T* out, const Wanted* wanted) {
      Vec<T> acc[M][2];
      if (part.begin == 0) {
        clear_tile<T>(acc);
      } else {
        load_tile<T, M>(acc, out, kPanel<T>);
      }
      Wanted next = *wanted;
      multiply_add<T, M>(acc, a + part.begin * M, e, part.end - part.begin, next);
      store_tile<T, M>(acc, out, kPanel<T>);
    }
  };
};

}  // namespace

template <class T>
void weight_grad(const RowChunk<T>& chunk, int64_t dim, const int64_t* slot, int64_t count,
                 int64_t index, bool accumulate, T* out, int64_t out_stride, T* scratch) {
  constexpr int P = kPanel<T>;
  const T* e = chunk.grads.exps + index * chunk.grads.exps_stride;
  const int64_t words = count_words<T>(chunk.rows);
  const Partition parts = partition(words, (words + kPartWords - 1) / kPartWords);
  alignas(64) T put_together[kWord<T> == 1 ? 1 : kPartWords * P];
  NextPanel<T> next(chunk, e, dim, slot, count, out, out_stride);
  for (int64_t index = 0; index < parts.count; ++index) {
    const Range part = piece(parts, index);
    const int64_t length = part.end - part.begin;
    const T* from =
        row_words(e, part.begin, length, chunk.rows, chunk.grads.coefficient, put_together);
    for (int64_t g = 0; g < chunk.grads.columns.count; ++g) {
      const Range r = piece(chunk.grads.columns, g);
      const T* a = chunk.grads.scaled_input + r.begin * words;
      const Wanted wanted = next.take(length / kPrefetchInterval);
      with_rows<Product<T>::template Body>(r.end - r.begin, a, from, part, scratch + r.begin * P,
                                           &wanted);
    }
  }
  scatter_transposed<T>(scratch, dim, slot, count, accumulate, out, out_stride);
}

template void weight_grad(const RowChunk<float>&, int64_t, const int64_t*, int64_t, int64_t, bool,
                          float*, int64_t, float*);
#if !defined(SSC_BF16_PAIRS)
template void weight_grad(const RowChunk<double>&, int64_t, const int64_t*, int64_t, int64_t, bool,
                          double*, int64_t, double*);
#endif

}  // namespace ssc::SSC_ISA
