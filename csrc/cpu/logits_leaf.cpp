// Plain logits against a block of packed classes, for evaluation.
#include "csrc/cpu/loss_stages.h"
#include "csrc/cpu/register_tile.h"

namespace ssc::SSC_ISA {
namespace {

template <class T>
struct Logits {
  template <int M>
  struct Tile {
    static void run(const PackedSamples<T>* samples, const RowChunk<T>* chunk, T inv_temperature,
                    int64_t row, int64_t panel, T* out) {
      constexpr int P = kPanel<T>;
      Vec<T> z[M][2];
      clear_tile<T>(z);
      multiply_add<T, M, 1, M>(z, chunk->packed + row * samples->dim,
                               samples->columns + panel * samples->dim * P, samples->dim);
      const T* adjust = samples->adjust + panel * P;
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
        z[i][0] = z[i][0] * inv_temperature + load(adjust);
        z[i][1] = z[i][1] * inv_temperature + load(adjust + kLanes<T>);
      }
      store_tile<T, M>(z, out, P);
    }
  };
};

}  // namespace

template <class T>
void logits(const PackedSamples<T>& samples, const RowChunk<T>& chunk, T inv_temperature,
            int64_t count, int64_t begin, int64_t end, MatrixView out, int64_t first_column) {
  constexpr int P = kPanel<T>;
  T tile[kTileRows * P];
  for (int64_t b = begin; b < end; ++b) {
    const Range r = piece(chunk.rows, chunk.blocks, b);
    for (int64_t panel = 0; panel < samples.panels; ++panel) {
      with_rows<Logits<T>::template Tile>(r.end - r.begin, &samples, &chunk, inv_temperature,
                                          r.begin, panel, static_cast<T*>(tile));
      const int64_t left = count - panel * P;
      for (int64_t i = r.begin; i < r.end; ++i) {
        char* to = const_cast<char*>(out.row(chunk.row_ids[i])) +
                   (first_column + panel * P) * element_size(out.dtype);
        convert<T>(tile + (i - r.begin) * P, to, out.dtype, left < P ? left : P);
      }
    }
  }
}

template void logits(const PackedSamples<float>&, const RowChunk<float>&, float, int64_t, int64_t,
                     int64_t, MatrixView, int64_t);
template void logits(const PackedSamples<double>&, const RowChunk<double>&, double, int64_t,
                     int64_t, int64_t, MatrixView, int64_t);

}  // namespace ssc::SSC_ISA
