// Packing: the matmuls stream panels, so the gather of sampled rows and the conversion from 16-bit
// types cost no pass of their own.
#include "csrc/cpu/loss_stages.h"

namespace ssc::SSC_ISA {
namespace {

constexpr int64_t kCacheLine = 64;

template <class S>
SSC_INLINE void prefetch_row(const S* row, int64_t dim) {
  const int64_t bytes = dim * static_cast<int64_t>(sizeof(S));
  for (int64_t b = 0; b < bytes; b += kCacheLine) {
    __builtin_prefetch(reinterpret_cast<const char*>(row) + b, 0, 2);
  }
}

// Rows `row[0:lanes]` (null: zeros), columns [d, d + lanes), to out's two layouts.
template <class T, class S, bool kWhole>
SSC_INLINE void pack_square(const S* const* row, int64_t d, int64_t width, T* columns, T* rows) {
  constexpr int L = kLanes<T>, P = kPanel<T>;
  Vec<T> v[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    if (row[i] == nullptr) {
      v[i] = Vec<T>{};
    } else {
      v[i] = kWhole ? load_as<T>(row[i] + d) : load_head<T>(row[i] + d, width);
    }
    if (rows != nullptr) store<T>(rows + i * P, v[i]);
  }
  transpose<T>(v);
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    if (kWhole || i < width) store<T>(columns + i * P, v[i]);
  }
}

template <class T, class S>
void gather_panel(const S* const (&row)[kPanel<T>], int64_t panel, const PackedSamples<T>& out) {
  constexpr int L = kLanes<T>, P = kPanel<T>;
  const int64_t height = out.tile_panels * P;
  T* columns = out.columns + panel * out.dim * P;
  T* rows = out.rows == nullptr ? nullptr
                                : out.rows + panel / out.tile_panels * height * out.padded_dim +
                                      panel % out.tile_panels * P * P;
  for (int64_t d = 0; d < out.padded_dim; d += L) {
    const int64_t left = out.dim - d;
    T* to = rows == nullptr ? nullptr : rows + d / P * P * height + d % P;
    for (int half = 0; half < P; half += L) {
      T* target = to == nullptr ? nullptr : to + half * P;
      if (left >= L) {
        pack_square<T, S, true>(row + half, d, L, columns + d * P + half, target);
      } else if (left > 0 || target != nullptr) {
        pack_square<T, S, false>(row + half, d, left > 0 ? left : 0, columns + d * P + half,
                                 target);
      }
    }
  }
}

template <class T, class S>
void gather(const S* weight, int64_t stride, const int64_t* ids, int64_t first, int64_t samples,
            const PackedSamples<T>& out, int64_t begin, int64_t end) {
  constexpr int P = kPanel<T>;
  const auto row_of = [&](int64_t s) -> const S* {
    if (s >= samples) return nullptr;
    return weight + (ids == nullptr ? first + s : ids[s]) * stride;
  };
  for (int64_t panel = begin; panel < end; ++panel) {
    const S* row[P];
    for (int i = 0; i < P; ++i) {
      row[i] = row_of(panel * P + i);
      const S* next = panel + 1 < end ? row_of((panel + 1) * P + i) : nullptr;
      if (next != nullptr) prefetch_row(next, out.dim);
    }
    gather_panel<T, S>(row, panel, out);
  }
}

// `rows` rows of H to out[D][rows], so that the broadcasts of one step lie side by side.
template <class T, class S>
void transpose_rows(const S* const* row, int64_t rows, int64_t dim, T* out) {
  constexpr int L = kLanes<T>;
  int64_t d = 0;
  // A vector store spills over into the entries of d + 1, which come next; the last ones, which
  // would spill into another block's, are stored one by one below.
  for (; d + 2 * L <= dim; d += L) {
    Vec<T> v[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) v[i] = i < rows ? load_as<T>(row[i] + d) : Vec<T>{};
    transpose<T>(v);
    for (int i = 0; i < L; ++i) store<T>(out + (d + i) * rows, v[i]);
  }
  for (; d < dim; ++d) {
    for (int64_t i = 0; i < rows; ++i) out[d * rows + i] = get<T>(row[i] + d);
  }
}

}  // namespace

template <class T>
void gather_panels(MatrixView weight, const int64_t* ids, int64_t first, int64_t samples,
                   const PackedSamples<T>& out, int64_t begin, int64_t end) {
  with_storage<T>(weight.data, weight.dtype, [&](const auto* data) {
    gather<T>(data, weight.stride, ids, first, samples, out, begin, end);
  });
}

template <class T>
void pack_rows(MatrixView input, const RowChunk<T>& chunk, int64_t dim, int64_t index) {
  static_assert(kTileRows <= kLanes<float> && kTileRows <= 2 * kLanes<double>);
  const Range r = piece(chunk.rows, chunk.blocks, index);
  with_storage<T>(input.data, input.dtype, [&](const auto* data) {
    using S = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    const int64_t rows = r.end - r.begin;
    const S* row[kTileRows];
    for (int64_t i = 0; i < rows; ++i) row[i] = data + chunk.row_ids[r.begin + i] * input.stride;
    T* out = chunk.packed + r.begin * dim;
    if (rows <= kLanes<T>) {
      transpose_rows<T>(row, rows, dim, out);
    } else {
      for (int64_t d = 0; d < dim; ++d) {
        for (int64_t i = 0; i < rows; ++i) out[d * rows + i] = get<T>(row[i] + d);
      }
    }
  });
}

template void gather_panels(MatrixView, const int64_t*, int64_t, int64_t,
                            const PackedSamples<float>&, int64_t, int64_t);
template void gather_panels(MatrixView, const int64_t*, int64_t, int64_t,
                            const PackedSamples<double>&, int64_t, int64_t);
template void pack_rows(MatrixView, const RowChunk<float>&, int64_t, int64_t);
template void pack_rows(MatrixView, const RowChunk<double>&, int64_t, int64_t);

}  // namespace ssc::SSC_ISA
