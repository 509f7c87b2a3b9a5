// Plain logits against all samples, in tiles of the matrix unit.
#include "csrc/cpu/kernels/amx_tile.h"
#include "csrc/cpu/kernels/stages.h"

namespace ssc::SSC_ISA {

template <class T>
void logits(const Samples& samples, const Tile<T>& tile, const RowChunk<T>& chunk, int64_t begin,
            int64_t end, MatrixView out) {
  constexpr int P = kPanel<T>;
  alignas(64) T z[kBlockRows * P];
  const int64_t words = count_words<T>(samples.dim), steps = words / kTileSide / kParts;
  const int64_t panels = count_panels<T>(samples.count);
  const T inv_temperature = static_cast<T>(samples.inv_temperature);
  for (int64_t first = 0; first < panels; first += tile.panels) {
    const int64_t last = smaller(first + tile.panels, panels);
    gather_tile<T>(samples, first, last, tile);
    for (int64_t b = begin; b < end; ++b) {
      const Range r = piece(chunk.blocks, b);
      const T* h = chunk.packed + r.begin * words;
      for (int64_t panel = first; panel < last; ++panel) {
        const T* w = tile.columns + (panel - first) * words * P;
        {
          const TileRegisters registers;
          clear_square<2>();
          for (int64_t k = 0; k < steps; ++k) {
            multiply_add_parts<2>(h + k * kParts * kTileWords,
                                  {kTileSide, steps * kParts * kTileWords, kTileWords},
                                  w + k * kParts * kTileSide * P);
          }
          store_square<2>(z, P);
        }
        const T* shift = tile.shift + (panel - first) * P;
        for (int64_t i = r.begin; i < r.end; ++i) {
          T* x = z + (i - r.begin) * P;
          store<T>(x, load(x) * inv_temperature + load(shift));
          store<T>(x + kTileSide, load(x + kTileSide) * inv_temperature + load(shift + kTileSide));
          char* row = const_cast<char*>(out.row(chunk.row_ids[i]));
          convert<T>(x, row + panel * P * element_size(out.dtype), out.dtype,
                     smaller(P, samples.count - panel * P));
        }
      }
    }
  }
}

template void logits(const Samples&, const Tile<float>&, const RowChunk<float>&, int64_t, int64_t,
                     MatrixView);

}  // namespace ssc::SSC_ISA
