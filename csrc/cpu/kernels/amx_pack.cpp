// Packing of H into tiles of the matrix unit, for z and, transposed and scaled, for dWs.
#include "csrc/cpu/kernels/amx_tile.h"
#include "csrc/cpu/kernels/stages.h"

namespace ssc::SSC_ISA {
namespace {

// Words (a[d], b[d]) of 16 elements each: a's lie before b's.
template <int kPart>
SSC_INLINE Words pair_rows(Words a, Words b) {
  static constexpr Lanes16 kPaired = [] {
    Lanes16 lanes{};
    for (int d = 0; d < 16; ++d) {
      lanes.from[2 * d] = static_cast<uint16_t>(d);
      lanes.from[2 * d + 1] = static_cast<uint16_t>(16 + d);
    }
    return lanes;
  }();
  const __m512i rounded = bits_of(round_part<kPart>(a, b));
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

// A part of an H's row to tiles of 32 elements, at `to` and every kParts tiles after it.
template <class T, int kPart, class S>
void pack_row(const S* h, int64_t dim, T* to) {
  for (int64_t d = 0; d < dim; d += kUnit<T>, to += kParts * kTileWords) {
    store<T>(to, dim - d >= kUnit<T> ? load_words<T, kPart>(h + d)
                                     : load_words_head<T, kPart>(h + d, dim - d));
  }
}

// A part of a tile of 16 columns by 32 rows; row(i): the columns of row i.
template <class T, int kPart, class Row>
SSC_INLINE void pack_columns(Row&& row, T* to) {
  Words v[kTileSide];
#pragma GCC unroll 16
  for (int j = 0; j < kTileSide; ++j) v[j] = pair_rows<kPart>(row(2 * j), row(2 * j + 1));
  transpose<T>(v);
#pragma GCC unroll 16
  for (int j = 0; j < kTileSide; ++j) store<T>(to + j * kTileSide, v[j]);
}

}  // namespace

// Block `index` of H to [2][D/32] tiles of 16 rows by 32 elements, of each part.
template <class T>
void pack_rows(MatrixView input, const RowChunk<T>& chunk, int64_t dim, int64_t index) {
  const Range r = piece(chunk.blocks, index);
  const int64_t words = count_words<T>(dim), tiles = words / kTileSide;
  T* out = chunk.packed + r.begin * words;
  with_operand<T>(input, [&](const auto* data) {
    for (int64_t i = 0; i < kBlockRows; ++i) {
      T* to = out + i / kTileSide * tiles * kTileWords + i % kTileSide * kTileSide;
      if (r.begin + i >= r.end) {
        for (int64_t k = 0; k < tiles; ++k) store<T>(to + k * kTileWords, Words{});
        continue;
      }
      const auto* h = data + chunk.row_ids[r.begin + i] * input.stride;
      pack_row<T, 0>(h, dim, to);
      if constexpr (kParts == 2) pack_row<T, 1>(h, dim, to + kTileWords);
    }
  });
}

// To [columns / 16][rows / 32] tiles of 16 columns by 32 rows, of each part.
template <class T>
void pack_grad_rows(MatrixView input, const RowChunk<T>& chunk, Range rows, int64_t dim) {
  const int64_t columns = chunk.grads.columns.n;
  const int64_t column_words = count_words<T>(chunk.rows) * kTileSide;
  with_operand<T>(input, [&](const auto* data) {
    for (int64_t begin = rows.begin; begin < rows.end; begin += kUnit<T>) {
      for (int64_t d = 0; d < columns; d += kTileSide) {
        const auto scaled = [&](int64_t i) {
          if (begin + i >= rows.end) return Words{};
          const auto* h = data + chunk.row_ids[begin + i] * input.stride + d;
          return scaled_columns(h, dim - d, columns > dim, chunk.grads.coefficient[begin + i]);
        };
        T* to = chunk.grads.scaled_input + d / kTileSide * column_words +
                begin / kUnit<T> * (kParts * kTileWords);
        pack_columns<T, 0>(scaled, to);
        if constexpr (kParts == 2) pack_columns<T, 1>(scaled, to + kTileWords);
      }
    }
  });
}

template void pack_rows(MatrixView, const RowChunk<float>&, int64_t, int64_t);
template void pack_grad_rows(MatrixView, const RowChunk<float>&, Range, int64_t);

}  // namespace ssc::SSC_ISA
