// The stages of loss/table.h as templates of this instruction set's namespace: one source
// defines each, kernels/table.cpp gathers them.
#pragma once

#if defined(SSC_AMX)
#include "csrc/cpu/kernels/amx_tile.h"
#endif
#include "csrc/cpu/kernels/prefetch.h"
#include "csrc/cpu/kernels/simd.h"
#include "csrc/cpu/kernels/upcoming.h"
#include "csrc/cpu/kernels/word.h"
#include "csrc/cpu/loss/table.h"

namespace ssc::SSC_ISA {

#if defined(SSC_AMX)
template <class T>
constexpr int kUnit = 32;  // rows of a square of tiles, and elements that a step contracts
constexpr int kBlockRows = 32;
#else
class TileRegisters {
 public:
  TileRegisters() {}
  ~TileRegisters() {}  // used, for the compiler, though there are none
};
template <class T>
constexpr int kUnit = kWord<T>;
constexpr int kBlockRows = kTileRows;
#endif

// kernels/gather.cpp
template <class T>
void gather_tile(const Samples& samples, int64_t first_panel, int64_t last_panel,
                 const Tile<T>& tile);

// kernels/pack.cpp; with tiles kernels/amx_pack.cpp
template <class T>
void pack_rows(MatrixView input, const RowChunk<T>& chunk, int64_t dim, int64_t index);
template <class T>
void pack_grad_rows(MatrixView input, const RowChunk<T>& chunk, Range rows, int64_t dim);

// Panels [begin, end) of all; those from `tile` on are in the tile of samples.
struct Panels {
  int64_t begin, end, tile;
};

// kernels/score.cpp: z and E of row block `block` against these panels. Meanwhile rows of
// `upcoming` are asked for.
template <class T>
void score(const Samples& samples, const Tile<T>& tile, const RowChunk<T>& chunk, int64_t block,
           Panels panels, UpcomingRows<T>& upcoming);

// kernels/score_negatives.cpp: the same for the negatives' loss.
template <class T>
void score_negatives(const Samples& samples, const Tile<T>& tile, const RowChunk<T>& chunk,
                     int64_t block, Panels panels, UpcomingRows<T>& upcoming);

// kernels/input_grad.cpp, amx_input_grad.cpp: dH of row block `block`, columns [column, column + P), over panels
// [first, last), which the tile holds.
template <class T>
void input_grad(const Tile<T>& tile, const RowChunk<T>& chunk, int64_t block, int64_t column,
                int64_t first, int64_t last);

// kernels/sweep.cpp
template <class T>
void sweep(const Samples& samples, const Tile<T>& tile, const RowChunk<T>& chunk, int64_t begin,
           int64_t end);
template <class T>
void reduce_row(const RowChunk<T>& chunk, int64_t i, double* sum, T* peak);

// kernels/weight_grad.cpp, amx_weight_grad.cpp
template <class T>
void weight_grad(const RowChunk<T>& chunk, int64_t dim, const int64_t* slot, int64_t count,
                 int64_t index, bool accumulate, T* out, int64_t out_stride, T* scratch);

// kernels/logits.cpp, amx_logits.cpp
template <class T>
void logits(const Samples& samples, const Tile<T>& tile, const RowChunk<T>& chunk, int64_t begin,
            int64_t end, MatrixView out);

#if defined(SSC_BF16_PAIRS)
}  // namespace ssc::SSC_ISA
namespace ssc::avx512 {  // single rows hold no words: their code is borrowed
#endif

// kernels/rows.cpp
template <class T>
T dot(MatrixView input, int64_t row, MatrixView weight, int64_t class_id, int64_t dim);
template <class T>
void finish_row(MatrixView weight, const RowChunk<T>& chunk, int64_t i, int64_t dim, int64_t target,
                T target_coefficient, MatrixView grad_out);
template <class T>
void add_row(MatrixView matrix, int64_t row, int64_t dim, T coefficient, T* out);
template <class T>
void convert(const T* from, void* to, DType dtype, int64_t count);

#if defined(SSC_BF16_PAIRS)
}  // namespace ssc::avx512
namespace ssc::SSC_ISA {
using avx512::add_row, avx512::convert, avx512::dot, avx512::finish_row;
#endif

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Panels of P samples that hold them all.
template <class T>
constexpr int64_t count_panels(int64_t samples) {
  return (samples + kPanel<T> - 1) / kPanel<T>;
}

// Words that hold `count` elements, in whole units.
template <class T>
constexpr int64_t count_words(int64_t count) {
  return (count + kUnit<T> - 1) / kUnit<T> * (kUnit<T> / kWord<T> * kParts);
}

// Words of E that a row has in a panel.
template <class T>
constexpr int kExpWords = kPanel<T> / kWord<T> * kParts;

// Calls f(p) with p typed as `dtype`'s storage, where arithmetic is in T.
template <class T, class F>
SSC_INLINE void with_storage(const void* p, DType dtype, F&& f) {
  if constexpr (sizeof(T) == 8) {
    f(static_cast<const double*>(p));
  } else {
    switch (dtype) {
      case DType::bf16:
        return f(static_cast<const BFloat16*>(p));
      case DType::f16:
        return f(static_cast<const Float16*>(p));
      default:
        return f(static_cast<const float*>(p));
    }
  }
}

// The same for H and W, which are bf16 or rounded to it where they are packed in pairs.
template <class T, class F>
SSC_INLINE void with_operand(const MatrixView& matrix, F&& f) {
  if constexpr (kWord<T> == 1) {
    with_storage<T>(matrix.data, matrix.dtype, f);
  } else if (matrix.dtype == DType::bf16) {
    f(static_cast<const BFloat16*>(matrix.data));
  } else {
    f(static_cast<const float*>(matrix.data));
  }
}

}  // namespace ssc::SSC_ISA
