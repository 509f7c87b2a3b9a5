// The vectorised stages of the loss, as one table of functions per (instruction set, arithmetic
// type). csrc/cpu/loss.cpp calls them in the data's order:
//
//   gather_panels   sampled rows of W  -> panels, in the two layouts that the matmuls stream
//   pack_rows       a block of H       -> the broadcast operand of z = H Ws^T
//   sweep           per tile of samples: z, E = exp(z − reference), row sums, dH += E Ws
//   finish_rows     loss, lse, dH out, and H scaled by its row's coefficient for dWs
//   weight_grad     dWs = E^T (scaled H), then the targets' own contributions
//
// Symbols as in the design: B rows, D width, S samples (here distinct ones), R rows of one chunk.
// "Row block" b is rows [b·R/blocks, (b+1)·R/blocks) of the chunk: equal to within one row, so that
// no thread is left with a thin remainder. All blocks are at most `tile_rows` high.
#pragma once

#include <cstdint>

#include "csrc/cpu/dtype.h"
#include "csrc/cpu/isa.h"

namespace ssc {

// Block `index` of `blocks` nearly equal pieces of [0, n).
struct Range {
  int64_t begin, end;
};
constexpr Range piece(int64_t n, int64_t blocks, int64_t index) {
  return {index * n / blocks, (index + 1) * n / blocks};
}

// Sampled rows in the two layouts of the matmuls. P = kPanel samples of a panel, zero padded.
//   columns [panels][D][P]                         vectors over samples, for z
//   rows    [tiles][Dp / P][tile_panels · P][P]    vectors over D, for dH; null where not needed
// The last tile may hold fewer panels; Dp = D rounded up to P.
template <class T>
struct PackedSamples {
  T* columns;
  T* rows;
  T* adjust;  // [panels · P]: bias/τ − log n of each sample; −inf in the padding
  int64_t panels, tile_panels, dim, padded_dim;
};

// One chunk of R rows on its way through a block of samples. State that must survive from one block
// of samples to the next (forward only) is in reference, settled and peak.
template <class T>
struct RowChunk {
  int64_t rows, blocks;
  const int64_t* row_ids;  // [R] row of H (and of all per-row inputs and outputs)
  T* packed;               // [blocks][D][block rows]
  T* reference;            // [R] exp's reference point: at first the target's corrected logit
  T* sum;                  // [R][lanes] partial sums of E over the present block of samples
  double* settled;         // [R] sums of E over earlier blocks of samples
  T* peak;                 // [R][lanes] partial maxima of z − reference
  const int64_t* hit;      // [R] which sample is the row's own target, or −1
  T* exps;                 // E [panels][exps_stride / P rows][P]; null: forward only
  int64_t exps_stride;     // elements from panel to panel
  T* grad_input;           // [R][Dp] Σ_s E_is W_s, not yet scaled; null: forward only
  T* grad_scaled;          // [D (+1) in blocks][R][block]: coefficient · H (· 1 for the bias)
};

template <class T>
struct LossLeaf {
  int lanes;      // of a vector
  int panel;      // samples in a panel: 2 vectors
  int tile_rows;  // rows of a register tile

  // Packs panels [begin, end) of the samples `ids` (first + s where ids is null).
  void (*gather_panels)(MatrixView weight, const int64_t* ids, int64_t first, int64_t samples,
                        const PackedSamples<T>& out, int64_t begin, int64_t end);

  // H's block `index` into chunk.packed.
  void (*pack_rows)(MatrixView input, const RowChunk<T>& chunk, int64_t dim, int64_t index);

  // h_i · W_class for one pair of rows.
  T (*dot)(MatrixView input, int64_t row, MatrixView weight, int64_t class_id, int64_t dim);

  // z, E, sums and dH of row blocks [begin, end) against all panels of `samples`.
  void (*sweep)(const PackedSamples<T>& samples, const RowChunk<T>& chunk, T inv_temperature,
                int64_t begin, int64_t end);

  // Σ and max over the lanes of row i's state.
  void (*reduce_row)(const RowChunk<T>& chunk, int64_t i, T* sum, T* peak);

  // grad_out[row] = scale · (Σ_s E_is W_s) + target_coefficient · W_target, and the row's share of
  // chunk.grad_scaled = scale · (H_i, 1).
  void (*finish_row)(MatrixView input, MatrixView weight, const RowChunk<T>& chunk, int64_t i,
                     int64_t dim, int64_t grad_blocks, bool has_bias, int64_t target, T scale,
                     T target_coefficient, MatrixView grad_out);

  // Rows dWs of panel `index` = E^T grad_scaled to out + slot[s] · out_stride: added where
  // `accumulate`, stored otherwise. scratch [D + 1][P], one per thread, holds the transposed
  // product afterwards: its last row is the bias gradient.
  void (*weight_grad)(const PackedSamples<T>& samples, const RowChunk<T>& chunk,
                      int64_t grad_blocks, bool has_bias, const int64_t* slot, int64_t count,
                      int64_t index, bool accumulate, T* out, int64_t out_stride, T* scratch);

  // out[0:dim] += coefficient · row `row` of the matrix.
  void (*add_row)(MatrixView matrix, int64_t row, int64_t dim, T coefficient, T* out);

  // Writes dim elements as `dtype`.
  void (*convert)(const T* from, void* to, DType dtype, int64_t count);

  // z (not exponentiated) of row blocks [begin, end) against all panels, to out[row · stride + s].
  void (*logits)(const PackedSamples<T>& samples, const RowChunk<T>& chunk, T inv_temperature,
                 int64_t count, int64_t begin, int64_t end, MatrixView out, int64_t first_column);
};

template <class T>
const LossLeaf<T>& loss_leaf(Isa isa);

}  // namespace ssc
