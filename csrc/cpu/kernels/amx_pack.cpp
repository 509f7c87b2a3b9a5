// Packing of H into tiles of the matrix unit, for z and, transposed and scaled, for dWs.
#include "csrc/cpu/kernels/amx_tile.h"
#include "csrc/cpu/kernels/stages.h"

namespace ssc::SSC_ISA {
namespace {

// Words (a[d], b[d]) of 16 elements each: a's lie before b's.
SSC_INLINE Words pair_rows(Words a, Words b) {
  static constexpr Lanes16 kPaired = [] {
    Lanes16 lanes{};
    for (int d = 0; d < 16; ++d) {
      lanes.from[2 * d] = static_cast<uint16_t>(d);
      lanes.from[2 * d + 1] = static_cast<uint16_t>(16 + d);
    }
    return lanes;
  }();
  const __m512i rounded = round_to_pairs(a, b);
  return words_of(permute(rounded, rounded, kPaired));
}

// coefficient · (h, 1) of 16 columns, of which `left` are h's and, where `ones`, one more is 1.
template <class S>
SSC_INLINE Words scaled_columns(const S* h, int64_t left, bool ones, float coefficient) {
  const auto one = static_cast<__mmask16>(ones && left >= 0 && left < kTileSide ? 1 << left : 0);
  const auto mask = static_cast<__mmask16>(first_lanes(left) | one);
  const __m512 values = _mm512_mask_mov_ps((__m512)load_first(h, left), one, _mm512_set1_ps(1));
  return (Words)_mm512_maskz_mul_ps(mask, values, _mm512_set1_ps(coefficient));
}

}  // namespace

// Block `index` of H to [2][D/32] tiles of 16 rows by 32 elements.
template <class T>
void pack_rows(MatrixView input, const RowChunk<T>& chunk, int64_t dim, int64_t index) {
  const Range r = piece(chunk.blocks, index);
  const int64_t words = count_words<T>(dim), steps = words / kTileSide;
  T* out = chunk.packed + r.begin * words;
  with_operand<T>(input, [&](const auto* data) {
    for (int64_t i = 0; i < kBlockRows; ++i) {
      T* to = out + i / kTileSide * steps * kTileWords + i % kTileSide * kTileSide;
      if (r.begin + i >= r.end) {
        for (int64_t k = 0; k < steps; ++k) store<T>(to + k * kTileWords, Words{});
        continue;
      }
      const auto* h = data + chunk.row_ids[r.begin + i] * input.stride;
      for (int64_t k = 0; k < steps; ++k) {
        const int64_t at = k * kUnit<T>, left = dim - at;
        store<T>(to + k * kTileWords,
                 left >= kUnit<T> ? load_words<T>(h + at) : load_words_head<T>(h + at, left));
      }
    }
  });
}

// To [columns / 16][rows / 32] tiles of 16 columns by 32 rows.
template <class T>
void pack_grad_rows(MatrixView input, const RowChunk<T>& chunk, Range rows, int64_t dim) {
  const int64_t columns = chunk.grads.columns.n, steps = count_words<T>(chunk.rows) / kTileSide;
  with_operand<T>(input, [&](const auto* data) {
    for (int64_t begin = rows.begin; begin < rows.end; begin += kUnit<T>) {
      for (int64_t d = 0; d < columns; d += kTileSide) {
        const auto scaled = [&](int64_t i) {
          if (i >= rows.end) return Words{};
          const auto* h = data + chunk.row_ids[i] * input.stride + d;
          return scaled_columns(h, dim - d, columns > dim, chunk.grads.coefficient[i]);
        };
        Words v[kTileSide];
#pragma GCC unroll 16
        for (int j = 0; j < kTileSide; ++j) {
          v[j] = pair_rows(scaled(begin + 2 * j), scaled(begin + 2 * j + 1));
        }
        transpose<T>(v);
        T* to = chunk.grads.scaled_input + (d / kTileSide * steps + begin / kUnit<T>)*kTileWords;
#pragma GCC unroll 16
        for (int j = 0; j < kTileSide; ++j) store<T>(to + j * kTileSide, v[j]);
      }
    }
  });
}

template void pack_rows(MatrixView, const RowChunk<float>&, int64_t, int64_t);
template void pack_grad_rows(MatrixView, const RowChunk<float>&, Range, int64_t);

}  // namespace ssc::SSC_ISA
