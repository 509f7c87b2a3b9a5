// dH += E Ws of one register tile, over the samples of one tile of them.
#include "csrc/cpu/kernels/register_tile.h"
#include "csrc/cpu/kernels/stages.h"

namespace ssc::SSC_ISA {
namespace {

template <class T>
struct Gradient {
  // grad_input[row : row + M][column : column + P] += E Ws over panels [first, last), the tile; w
  // are its packed rows from that column on.
  template <int M>
  struct Body {
    static void run(const RowChunk<T>* chunk, int64_t row, int64_t padded_dim, int64_t column,
                    const T* w, int64_t first, int64_t last) {
      constexpr int P = kPanel<T>;
      T* out = chunk->grads.input + row * padded_dim + column;
      Vec<T> acc[M][2];
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {  // the next column's accumulators, from L2
        __builtin_prefetch(out + i * padded_dim + P, 1, 3);
        __builtin_prefetch(out + i * padded_dim + P + kLanes<T>, 1, 3);
      }
      if (first == 0) {
        clear_tile<T>(acc);
      } else {
        load_tile<T, M>(acc, out, padded_dim);
      }
      for (int64_t p = first; p < last; ++p, w += P / kWord<T> * P) {
        const T* e = chunk->grads.exps + p * chunk->grads.exps_stride + row * P / kWord<T>;
        multiply_add_panel<T, M>(acc, e, w);
      }
      store_tile<T, M>(acc, out, padded_dim);
    }
  };
};

}  // namespace

template <class T>
void input_grad(const Tile<T>& tile, const RowChunk<T>& chunk, int64_t block, int64_t column,
                int64_t first, int64_t last) {
  const Range r = piece(chunk.blocks, block);
  const T* w = tile.rows + column * tile.panels * kPanel<T> / kWord<T>;
  with_rows<Gradient<T>::template Body>(r.end - r.begin, &chunk, r.begin, tile.padded_dim, column,
                                        w, first, last);
}

template void input_grad(const Tile<float>&, const RowChunk<float>&, int64_t, int64_t, int64_t,
                         int64_t);
#if !defined(SSC_BF16_PAIRS)
template void input_grad(const Tile<double>&, const RowChunk<double>&, int64_t, int64_t, int64_t,
                         int64_t);
#endif

}  // namespace ssc::SSC_ISA
