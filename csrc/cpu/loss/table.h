// The vectorised stages of the loss, as one table of functions per (instruction set, arithmetic
// type). loss/forward.cpp and loss/step.cpp call them in the data's order:
//
//   pack_rows       a block of H       -> the broadcast operand of z = H Ws^T
//   sweep           per tile of samples: gather and pack its rows of W; z, E = exp(z − reference),
//                   row sums, dH += E Ws
//   finish_row      loss, lse, dH out
//   pack_grad_rows  H scaled by its rows' coefficients, the broadcast operand of dWs
//   weight_grad     dWs = E^T (scaled H), then the targets' own contributions
//
// Operands of matmuls are packed into words of T's size: elements, or, for AVX512-BF16 and AMX,
// pairs of bf16 that are neighbours along the contraction. K is the number of elements in a word;
// D/K and the like are rounded up to whole units, and filled up with zeros: a unit is a word, or for
// AMX the 32 elements or rows that its tiles take. There blocks of H lie as tiles of 16 rows by 32
// elements, [2][D/32] a block, and the scaled H as tiles of 16 columns by 32 rows, [columns/16][R/32].
//
// Symbols: B rows, D width, S samples (here distinct ones), R rows of one chunk.
// The rows of a chunk are partitioned into blocks of at most `tile_rows` rows, of whole units but for
// the last.
//
// Where float32 is multiplied as two parts of bf16, the words of the second follow those of the
// first, unit by unit, and a word holds one element on average.
#pragma once

#include <cstdint>

#include "csrc/core/products.h"
#include "csrc/cpu/base/dtype.h"
#include "csrc/cpu/base/isa.h"

namespace ssc {

struct Range {
  int64_t begin, end;
};

// [0, n) in `count` pieces whose lengths differ by one unit at most; only the last unit may be cut
// short. The divisions are done once: inner loops ask for a piece before each register tile.
struct Partition {
  int64_t count, size, longer;  // the first `longer` pieces have size + 1 units
  int64_t unit, n;
};
constexpr Partition partition(int64_t n, int64_t count, int64_t unit = 1) {
  const int64_t units = (n + unit - 1) / unit;
  return {count, count > 0 ? units / count : 0, count > 0 ? units % count : 0, unit, n};
}
constexpr Range piece(const Partition& p, int64_t index) {
  const int64_t begin = index * p.size + (index < p.longer ? index : p.longer);
  const int64_t end = (begin + p.size + (index < p.longer)) * p.unit;
  return {begin * p.unit, end < p.n ? end : p.n};
}

// How a sample's logit x enters the sum, where that is not the plain softmax's exp(x − log n −
// reference): x is capped, c tanh(x / c) for a cap c > 0, and the sum may be that of softplus.
struct NegativesForm {
  bool sigmoid;
  double softcap;  // 0: none
};

// The samples and where their rows of W come from.
struct Samples {
  MatrixView weight;         // [C, D]
  Vector bias;               // [C], may be null
  const int64_t* ids;        // [count] classes; null: first, first + 1, ...
  const double* log_count;   // [count] log n of each sample; null: 0
  const double* log_copies;  // [count] what merged copies add to a sample's logit; null: 0
  int64_t first, count, dim;
  double inv_temperature;
  const NegativesForm* negatives;  // null: the plain softmax
};

// Memory for one tile of packed samples, a thread's own. P = kPanel samples make a panel, the last
// one of all padded; Dp = D rounded up to P.
//   columns  [panels][D/K][P]           vectors over samples, for z
//   rows     [Dp / P][panels · P/K][P]  vectors over D, for dH; null where not needed
// and, each [panels · P]:
//   shift       b/τ − log n, for the plain softmax and plain logits; −inf in the padding
//   bias        b/τ, for negatives, whose logits are capped before log n comes off
//   log_count   log n, for negatives; +inf in the padding
//   log_copies  the share of merged copies in a sample's logit; not where softplus is summed
//   copies      the number of copies that a sample stands for, where softplus is summed
template <class T>
struct Tile {
  T* columns;
  T* rows;
  T* shift;
  T* bias;
  T* log_count;
  T* log_copies;
  T* copies;
  int64_t panels, padded_dim;
};

// The sums of R rows over the samples that have gone by.
template <class T>
struct RunningSums {
  T* reference;     // [R] exp's reference point: at first the target's corrected logit
  T* sum;           // [R][lanes] partial sums of E over the latest samples
  double* settled;  // [R] sums of E over the samples before
  T* peak;          // [R][lanes] partial maxima of z − reference: single copies, hits left out
};

// The samples that are hits of R rows: their own targets, or of negatives any number of classes.
struct RowHits {
  bool removed;  // whether hits are left out of sums and gradients
  // [R] the row's target or, of negatives, the hit that the sweep will meet next; −1: none
  int64_t* sample;
  // For negatives alone: the hits after that one are list[next, end), by rising id.
  const int64_t* list;
  int64_t* next;       // [R]
  const int64_t* end;  // [R]
};

// The part of a chunk that only the gradients need.
template <class T>
struct ChunkGradients {
  T* exps;              // E [panels][rows, padded][P/K]; null: forward only
  int64_t exps_stride;  // words from panel to panel
  T* input;             // [R][Dp] Σ_s E_is W_s, not yet scaled
  T* coefficient;       // [R] the factors of E's rows: k_i / sum_i
  Partition columns;    // of D, and one more column of ones where there is a bias
  // [columns][R/K][columns of the piece]: coefficient · H. In vectors of pairs H itself, without a
  // rounding: E, rounded already, takes the coefficient instead.
  T* scaled_input;
};

// One chunk of R rows on its way through the samples. The memory serves all chunks; rows, blocks,
// row_ids and where the hits lie are set for each.
template <class T>
struct RowChunk {
  int64_t rows;
  Partition blocks;        // of the rows, in units
  const int64_t* row_ids;  // [R] row of H (and of all per-row inputs and outputs)
  T* packed;               // [blocks][D/K][block rows]
  RunningSums<T> sums;
  RowHits hits;
  ChunkGradients<T> grads;
};

template <class T>
struct LossKernels {
  int lanes;      // of a vector
  int panel;      // samples in a panel: 2 vectors
  int tile_rows;  // rows of a register tile, a multiple of K
  int word;       // K
  int unit;       // elements to whose multiple packed rows and widths are filled up, with zeros

  // H's block `index` into chunk.packed.
  void (*pack_rows)(MatrixView input, const RowChunk<T>& chunk, int64_t dim, int64_t index);

  // h_i · W_class for one pair of rows.
  T (*dot)(MatrixView input, int64_t row, MatrixView weight, int64_t class_id, int64_t dim);

  // z, E, sums and dH of row blocks [begin, end) against all samples.
  void (*sweep)(const Samples& samples, const Tile<T>& tile, const RowChunk<T>& chunk,
                int64_t begin, int64_t end);

  // Row i's Σ_s E and maximum of z − reference.
  void (*reduce_row)(const RowChunk<T>& chunk, int64_t i, double* sum, T* peak);

  // grad_out[row] = coefficient · (Σ_s E_is W_s) + target_coefficient · W_target; without the
  // latter for a negative target.
  void (*finish_row)(MatrixView weight, const RowChunk<T>& chunk, int64_t i, int64_t dim,
                     int64_t target, T target_coefficient, MatrixView grad_out);

  // The share of `rows`, those of whole blocks, in chunk.grads.scaled_input = coefficient · (H_i, 1).
  void (*pack_grad_rows)(MatrixView input, const RowChunk<T>& chunk, Range rows, int64_t dim);

  // Rows dWs of panel `index` = E^T grad_scaled to out + slot[s] · out_stride: added where
  // `accumulate`, stored otherwise. scratch [D + 1][P], one per thread, holds the transposed
  // product afterwards: its last row is the bias gradient.
  void (*weight_grad)(const RowChunk<T>& chunk, int64_t dim, const int64_t* slot, int64_t count,
                      int64_t index, bool accumulate, T* out, int64_t out_stride, T* scratch);

  // out[0:dim] += coefficient · row `row` of the matrix.
  void (*add_row)(MatrixView matrix, int64_t row, int64_t dim, T coefficient, T* out);

  // Writes dim elements as `dtype`.
  void (*convert)(const T* from, void* to, DType dtype, int64_t count);

  // z (not exponentiated) of row blocks [begin, end) against all samples, to out[row][sample].
  void (*logits)(const Samples& samples, const Tile<T>& tile, const RowChunk<T>& chunk,
                 int64_t begin, int64_t end, MatrixView out);
};

// The instruction set whose kernels serve H and W of these types: avx512_bf16 and amx_bf16 are
// avx512 for all but bf16, and float32 where its products may be so rounded (tf32: by amx_bf16 alone).
Isa kernels_isa(Isa isa, DType input, DType weight, Products products);

// For H and W of these types.
template <class T>
const LossKernels<T>& loss_kernels(Isa isa, DType input, DType weight,
                                   Products products = Products::ieee);

}  // namespace ssc
