// dWs = E^T (scaled H) for one panel of samples, in tiles of the matrix unit: the transpose of it,
// (scaled H)^T E, so that E's panel needs no more than its rows paired.
#include "csrc/cpu/kernels/amx_tile.h"
#include "csrc/cpu/kernels/next_panel.h"
#include "csrc/cpu/kernels/stages.h"
#include "csrc/cpu/kernels/transposed_rows.h"

namespace ssc::SSC_ISA {
namespace {

// Lines of a stream that a step of a product asks for.
constexpr int64_t kLinesAhead = 4;
// Rows of E's panel that are taken at a time, so that they stay in L1.
constexpr int64_t kPartRows = 512 / kParts;

// `steps` times 32 rows of E's panel, to words of two rows each, part after part.
template <class T>
void pair_rows(const T* e, int64_t steps, T* out) {
  constexpr int P = kPanel<T>;
  static constexpr Lanes16 kLow = interleave(0), kHigh = interleave(1);
  for (int64_t k = 0; k < steps; ++k, e += kUnit<T> * kExpWords<T>) {
    for (int64_t part = 0; part < kParts; ++part) {
      const T* row = e + part * kTileSide;
      for (int64_t j = 0; j < kTileSide; ++j, row += 2 * kExpWords<T>, out += P) {
        const __m512i first = bits_of(load(row)), second = bits_of(load(row + kExpWords<T>));
        store<T>(out, words_of(permute(first, second, kLow)));
        store<T>(out + kTileSide, words_of(permute(first, second, kHigh)));
      }
    }
  }
}

// out[j][0:P] (+)= Σ_i a[j][i] e[i][0:P] for kTiles · 16 columns j of the scaled H; a's second tiles
// are `a_stride` after the first.
template <class T, int kTiles>
SSC_INLINE void add_products(const T* a, int64_t a_stride, const T* part, int64_t steps, bool begin,
                             T* out, Wanted wanted) {
  constexpr int P = kPanel<T>;
  if (begin) {
    clear_square<kTiles>();
  } else {
    load_square<kTiles>(out, P);
  }
  for (int64_t k = 0; k < steps; ++k) {
    multiply_add_parts<kTiles>(a + k * kParts * kTileWords, {kTileSide, a_stride, kTileWords},
                               part + k * kParts * kTileSide * P);
    for (int64_t j = 0; j < kLinesAhead; ++j) {
      __builtin_prefetch(wanted.read[0], 0, 2);
      __builtin_prefetch(wanted.write, 1, 2);
      wanted.read[0] += wanted.read_stride;
      wanted.write += wanted.write_stride;
    }
  }
  store_square<kTiles>(out, P);
}

}  // namespace

template <class T>
void weight_grad(const RowChunk<T>& chunk, int64_t dim, const int64_t* slot, int64_t count,
                 int64_t index, bool accumulate, T* out, int64_t out_stride, T* scratch) {
  constexpr int P = kPanel<T>;
  alignas(64) T part[kPartRows / kWord<T> * kParts * P];
  const T* e = chunk.grads.exps + index * chunk.grads.exps_stride;
  const int64_t columns = chunk.grads.columns.n,
                steps = count_words<T>(chunk.rows) / kTileSide / kParts;
  constexpr int64_t kPartSteps = kPartRows / kUnit<T>;
  const Partition parts = partition(steps, (steps + kPartSteps - 1) / kPartSteps);
  NextPanel<T> next(chunk, e, dim, slot, count, out, out_stride);
  const TileRegisters registers;
  for (int64_t p = 0; p < parts.count; ++p) {
    const Range r = piece(parts, p);
    const int64_t length = r.end - r.begin;
    pair_rows(e + r.begin * kUnit<T> * kExpWords<T>, length, part);
    for (int64_t d = 0; d < columns; d += 2 * kTileSide) {
      const T* a =
          chunk.grads.scaled_input + (d / kTileSide * steps + r.begin) * kParts * kTileWords;
      const Wanted wanted = next.take(length * kLinesAhead);
      if (columns - d > kTileSide) {
        add_products<T, 2>(a, steps * kParts * kTileWords, part, length, p == 0, scratch + d * P,
                           wanted);
      } else {
        add_products<T, 1>(a, 0, part, length, p == 0, scratch + d * P, wanted);
      }
    }
  }
  scatter_transposed<T>(scratch, dim, slot, count, accumulate, out, out_stride);
}

template void weight_grad(const RowChunk<float>&, int64_t, const int64_t*, int64_t, int64_t, bool,
                          float*, int64_t, float*);

}  // namespace ssc::SSC_ISA
