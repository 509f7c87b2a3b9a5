// Plain logits against all samples (for evaluation: a range of classes).
#include "csrc/cpu/kernels/register_tile.h"
#include "csrc/cpu/kernels/stages.h"

namespace ssc::SSC_ISA {
namespace {

template <class T>
struct Logits {
  template <int M>
  struct Body {
    static void run(const Tile<T>* tile, const RowChunk<T>* chunk, const Samples* samples,
                    int64_t row, int64_t local, T* out) {
      constexpr int P = kPanel<T>;
      const int64_t steps = count_words<T>(samples->dim);
      Wanted wanted = nothing_wanted(out);
      Vec<T> z[M][2];
      clear_tile<T>(z);
      multiply_add<T, M>(z, chunk->packed + row * steps, tile->columns + local * steps * P, steps,
                         wanted);
      const T inv_temperature = static_cast<T>(samples->inv_temperature);
      const T* shift = tile->shift + local * P;
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
        z[i][0] = z[i][0] * inv_temperature + load(shift);
        z[i][1] = z[i][1] * inv_temperature + load(shift + kLanes<T>);
      }
      store_tile<T, M>(z, out, P);
    }
  };
};

}  // namespace

template <class T>
void logits(const Samples& samples, const Tile<T>& tile, const RowChunk<T>& chunk, int64_t begin,
            int64_t end, MatrixView out) {
  constexpr int P = kPanel<T>;
  alignas(64) T block[kTileRows * P];
  const int64_t panels = count_panels<T>(samples.count);
  for (int64_t first = 0; first < panels; first += tile.panels) {
    const int64_t last = smaller(first + tile.panels, panels);
    gather_tile<T>(samples, first, last, tile);
    for (int64_t b = begin; b < end; ++b) {
      const Range r = piece(chunk.blocks, b);
      for (int64_t panel = first; panel < last; ++panel) {
        with_rows<Logits<T>::template Body>(r.end - r.begin, &tile, &chunk, &samples, r.begin,
                                            panel - first, static_cast<T*>(block));
        for (int64_t i = r.begin; i < r.end; ++i) {
          char* row = const_cast<char*>(out.row(chunk.row_ids[i]));
          convert<T>(block + (i - r.begin) * P, row + panel * P * element_size(out.dtype),
                     out.dtype, smaller(P, samples.count - panel * P));
        }
      }
    }
  }
}

template void logits(const Samples&, const Tile<float>&, const RowChunk<float>&, int64_t, int64_t,
                     MatrixView);
#if !defined(SSC_BF16_PAIRS)
template void logits(const Samples&, const Tile<double>&, const RowChunk<double>&, int64_t, int64_t,
                     MatrixView);
#endif

}  // namespace ssc::SSC_ISA
