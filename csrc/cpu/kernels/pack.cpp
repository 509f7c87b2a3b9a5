// Packing of H, the operand that the matmuls broadcast.
#include "csrc/cpu/kernels/stages.h"

namespace ssc::SSC_ISA {
namespace {

// `rows` rows of H to out[D/K][rows], word by word from word `begin` on.
template <class T, class S>
void put_words(const S* const* row, int64_t rows, int64_t dim, int64_t begin, T* out) {
  constexpr int K = kWord<T>;
  for (int64_t k = begin; k * K < dim; ++k) {
    for (int64_t i = 0; i < rows; ++i) put_word(out + k * rows + i, row[i] + k * K, dim - k * K);
  }
}

// `rows` rows of H to out[D/K][rows], so that the broadcasts of one step lie side by side.
template <class T, class S>
void transpose_rows(const S* const* row, int64_t rows, int64_t dim, T* out) {
  constexpr int L = kLanes<T>, K = kWord<T>;
  int64_t k = 0;
  // A vector store spills over into the entries of k + 1, which come next; the last ones, which
  // would spill into another block's, are stored one by one below.
  for (; (k + 2 * L) * K <= dim; k += L) {
    Vec<T> v[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) v[i] = i < rows ? load_words<T, 0>(row[i] + k * K) : Vec<T>{};
    transpose<T>(v);
    for (int i = 0; i < L; ++i) store<T>(out + (k + i) * rows, v[i]);
  }
  put_words<T>(row, rows, dim, k, out);
}

}  // namespace

template <class T>
void pack_rows(MatrixView input, const RowChunk<T>& chunk, int64_t dim, int64_t index) {
  static_assert(kTileRows <= kLanes<float> && kTileRows <= 2 * kLanes<double>);
  const Range r = piece(chunk.blocks, index);
  with_operand<T>(input, [&](const auto* data) {
    using S = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    const int64_t rows = r.end - r.begin;
    const S* row[kTileRows];
    for (int64_t i = 0; i < rows; ++i) row[i] = data + chunk.row_ids[r.begin + i] * input.stride;
    T* out = chunk.packed + r.begin * count_words<T>(dim);
    if (rows <= kLanes<T>) {
      transpose_rows<T>(row, rows, dim, out);
    } else {
      put_words<T>(row, rows, dim, 0, out);
    }
  });
}

template <class T>
void pack_grad_rows(MatrixView input, const RowChunk<T>& chunk, Range rows, int64_t dim) {
  with_operand<T>(input, [&](const auto* data) {
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const auto* h = data + chunk.row_ids[i] * input.stride;
      for (int64_t g = 0; g < chunk.grads.columns.count; ++g) {
        const Range r = piece(chunk.grads.columns, g);
        const int64_t count = r.end - r.begin;
        T* out =
            chunk.grads.scaled_input + r.begin * count_words<T>(chunk.rows) + i / kWord<T> * count;
        put_grad_words(out, h + r.begin, count, dim - r.begin, chunk.grads.coefficient[i], i);
      }
    }
  });
}

template void pack_rows(MatrixView, const RowChunk<float>&, int64_t, int64_t);
template void pack_grad_rows(MatrixView, const RowChunk<float>&, Range, int64_t);
#if !defined(SSC_BF16_PAIRS)
template void pack_rows(MatrixView, const RowChunk<double>&, int64_t, int64_t);
template void pack_grad_rows(MatrixView, const RowChunk<double>&, Range, int64_t);
#endif

}  // namespace ssc::SSC_ISA
