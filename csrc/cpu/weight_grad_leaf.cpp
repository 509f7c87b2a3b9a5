// dWs = E^T (scaled H) for one panel of samples.
//
// The roles are swapped: the vectors run over the samples, where E's panel is contiguous, and the
// scaled H is broadcast, so a panel of E is read from L2 and nothing is transposed on the way in.
// The result [D][P] is transposed on the way out, once, in registers.
#include "csrc/cpu/loss_stages.h"
#include "csrc/cpu/register_tile.h"

namespace ssc::SSC_ISA {
namespace {

template <class T>
struct Product {
  // out[j][0:P] = Σ_i a[i][j] · e[i][0:P] for M columns j of the scaled H.
  template <int M>
  struct Tile {
    static void run(const T* a, const T* e, int64_t rows, T* out) {
      Vec<T> acc[M][2];
      clear_tile<T>(acc);
      multiply_add<T, M, 1, M>(acc, a, e, rows);
      store_tile<T, M>(acc, out, kPanel<T>);
    }
  };
};

// from[D][P] to rows out + slot[s] · stride, s < count.
template <class T, bool kAccumulate>
SSC_INLINE void scatter_transposed(const T* from, int64_t dim, const int64_t* slot, int64_t count,
                                   T* out, int64_t stride) {
  constexpr int L = kLanes<T>, P = kPanel<T>;
  for (int64_t s = 0; s < count; s += L) {
    const int64_t lanes = count - s < L ? count - s : L;
    int64_t d = 0;
    for (; d + L <= dim; d += L) {
      Vec<T> v[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) v[i] = load(from + (d + i) * P + s);
      transpose<T>(v);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        if (i >= lanes) break;
        T* to = out + slot[s + i] * stride + d;
        store<T>(to, kAccumulate ? load(to) + v[i] : v[i]);
      }
    }
    for (; d < dim; ++d) {
      for (int64_t i = 0; i < lanes; ++i) {
        T* to = out + slot[s + i] * stride + d;
        *to = (kAccumulate ? *to : T(0)) + from[d * P + s + i];
      }
    }
  }
}

}  // namespace

template <class T>
void weight_grad(const PackedSamples<T>& samples, const RowChunk<T>& chunk, int64_t grad_blocks,
                 bool has_bias, const int64_t* slot, int64_t count, int64_t index, bool accumulate,
                 T* out, int64_t out_stride, T* scratch) {
  constexpr int P = kPanel<T>;
  const int64_t width = samples.dim + has_bias;
  const T* e = chunk.exps + index * chunk.exps_stride;
  for (int64_t i = 0; i < count; ++i) {
    // The rows to be written are strided by D and cold: ask for them while the product runs.
    for (int64_t d = 0; d < samples.dim; d += 64 / static_cast<int64_t>(sizeof(T))) {
      __builtin_prefetch(out + slot[i] * out_stride + d, 1, 2);
    }
  }
  for (int64_t g = 0; g < grad_blocks; ++g) {
    const Range r = piece(width, grad_blocks, g);
    with_rows<Product<T>::template Tile>(
        r.end - r.begin, static_cast<const T*>(chunk.grad_scaled) + r.begin * chunk.rows, e,
        chunk.rows, scratch + r.begin * P);
  }
  if (accumulate) {
    scatter_transposed<T, true>(scratch, samples.dim, slot, count, out, out_stride);
  } else {
    scatter_transposed<T, false>(scratch, samples.dim, slot, count, out, out_stride);
  }
}

template void weight_grad(const PackedSamples<float>&, const RowChunk<float>&, int64_t, bool,
                          const int64_t*, int64_t, int64_t, bool, float*, int64_t, float*);
template void weight_grad(const PackedSamples<double>&, const RowChunk<double>&, int64_t, bool,
                          const int64_t*, int64_t, int64_t, bool, double*, int64_t, double*);

}  // namespace ssc::SSC_ISA
