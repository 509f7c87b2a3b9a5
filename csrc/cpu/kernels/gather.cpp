// The gather of sampled rows of W: it packs them into the panels that the matmuls stream, and converts
// 16-bit types, so neither costs a pass of its own.
#include <cmath>
#include <limits>

#include "csrc/cpu/kernels/stages.h"

namespace ssc::SSC_ISA {
namespace {

// A part of rows row[0:lanes], columns [d, d + width), to out's two layouts.
template <class T, class S, bool kWhole, bool kRows, int kPart>
SSC_INLINE void pack_part(const S* const* row, int64_t d, int64_t width, T* columns, T* rows) {
  constexpr int L = kLanes<T>, P = kPanel<T>;
  Vec<T> v[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    v[i] = kWhole ? load_words<T, kPart>(row[i] + d) : load_words_head<T, kPart>(row[i] + d, width);
  }
  // All loads before any store: rows of W and the tile often agree in the low 12 bits of their
  // addresses, and a load then waits for every such store before it.
  asm volatile("" ::: "memory");
  if constexpr (kRows) store_sample_words<T>(rows, v);
  transpose<T>(v);
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    if (kWhole || i < count_words<T>(width)) store<T>(columns + i * P, v[i]);
  }
}

template <class T, class S, bool kWhole, bool kRows>
SSC_INLINE void pack_square(const S* const* row, int64_t d, int64_t width, T* columns, T* rows) {
  constexpr int L = kLanes<T>, P = kPanel<T>;
  pack_part<T, S, kWhole, kRows, 0>(row, d, width, columns, rows);
  if constexpr (kParts == 2) {
    T* next = kRows ? rows + P / kWord<T> * P : nullptr;
    pack_part<T, S, kWhole, kRows, 1>(row, d, width, columns + L * P, next);
  }
}

// The lines of kStep elements.
template <class S, int64_t kStep>
SSC_INLINE void prefetch_step(const S* p) {
  constexpr int64_t kInLine = 64 / static_cast<int64_t>(sizeof(S));
  for (int64_t i = 0; i < kStep; i += kInLine) __builtin_prefetch(p + i, 0, 2);
}

// next: the rows of the panel after this one. They lie anywhere in memory, so each step asks for
// the lines that the same step of the next panel will read.
template <class T, class S, bool kRows>
void gather_panel(const S* const (&row)[kPanel<T>], const S* const (&next)[kPanel<T>],
                  int64_t panel, int64_t dim, const Tile<T>& tile) {
  constexpr int L = kLanes<T>, P = kPanel<T>, K = kWord<T>;
  constexpr int64_t kStep = L * K;  // elements of a vector of words
  constexpr int kPanelRows = P / K * kParts;
  const int64_t height = tile.panels * kPanelRows, words = count_words<T>(dim);
  T* columns = tile.columns + panel * words * P;
  T* rows = kRows ? tile.rows + panel * kPanelRows * P : nullptr;
  const int64_t whole = dim / kStep * kStep;
  for (int64_t d = 0; d < whole; d += kStep) {
    for (int i = 0; i < P; ++i) prefetch_step<S, kStep>(next[i] + d);
    T* step = columns + d / K * kParts * P;
    T* to = kRows ? rows + d / P * P * height + d % P : nullptr;
    pack_square<T, S, true, kRows>(row, d, kStep, step, to);
    pack_square<T, S, true, kRows>(row + L, d, kStep, step + L, to + (kRows ? L / K * P : 0));
  }
  for (int64_t d = whole; d < (kRows ? tile.padded_dim : words / kParts * K); d += kStep) {
    const int64_t left = dim > d ? dim - d : 0;
    T* step = columns + d / K * kParts * P;
    T* to = kRows ? rows + d / P * P * height + d % P : nullptr;
    pack_square<T, S, false, kRows>(row, d, left, step, to);
    pack_square<T, S, false, kRows>(row + L, d, left, step + L, to + (kRows ? L / K * P : 0));
  }
}

template <class T, class S>
void gather(const S* weight, const Samples& samples, int64_t first_panel, int64_t last_panel,
            const Tile<T>& tile) {
  constexpr int P = kPanel<T>;
  const S* row[P];
  const S* next[P];
  // The padding repeats the last sample: its logits are −inf through `shift` or `log_count`.
  const auto point_at = [&](int64_t panel, const S** rows) {
    for (int64_t i = 0; i < P; ++i) {
      const int64_t s = smaller(panel * P + i, samples.count - 1);
      const int64_t id = samples.ids == nullptr ? samples.first + s : samples.ids[s];
      rows[i] = weight + id * samples.weight.stride;
    }
  };
  point_at(first_panel, next);
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    std::memcpy(row, next, sizeof(row));
    if (panel + 1 < last_panel) point_at(panel + 1, next);
    if (tile.rows != nullptr) {
      gather_panel<T, S, true>(row, next, panel - first_panel, samples.dim, tile);
    } else {
      gather_panel<T, S, false>(row, next, panel - first_panel, samples.dim, tile);
    }
  }
}

// Biases lie as far apart as rows of W: those of the next tile are asked for already.
template <class T, class S>
void gather_shift(const S* bias, const Samples& samples, int64_t begin, int64_t end, T* shift,
                  T* log_copies) {
  const int64_t ahead = bias == nullptr || samples.ids == nullptr ? samples.count : end - begin;
  for (int64_t s = begin; s < end; ++s, ++shift, ++log_copies) {
    if (s + ahead < samples.count) __builtin_prefetch(bias + samples.ids[s + ahead], 0, 2);
    *log_copies = 0;
    if (s >= samples.count) {
      *shift = -std::numeric_limits<T>::infinity();
      continue;
    }
    const int64_t id = samples.ids == nullptr ? samples.first + s : samples.ids[s];
    const double b = bias == nullptr ? 0 : static_cast<double>(get<T>(bias + id));
    const double log_count = samples.log_count == nullptr ? 0 : samples.log_count[s];
    *shift = static_cast<T>(b * samples.inv_temperature - log_count);
    if (samples.log_copies != nullptr) *log_copies = static_cast<T>(samples.log_copies[s]);
  }
}

// The same for the negatives' loss: summands of a logit before the cap, and apart from them those
// that come off after it.
template <class T, class S>
void gather_negatives(const S* bias, const Samples& samples, int64_t begin, int64_t end,
                      const Tile<T>& tile) {
  const bool sigmoid = samples.negatives->sigmoid;
  for (int64_t s = begin, i = 0; s < end; ++s, ++i) {
    const bool inside = s < samples.count;
    const int64_t id = samples.ids[inside ? s : samples.count - 1];
    const double b = bias == nullptr ? 0 : static_cast<double>(get<T>(bias + id));
    const double copies = inside ? samples.log_copies[s] : 0;
    const double merged = inside ? samples.log_count[s] : std::numeric_limits<double>::infinity();
    tile.bias[i] = static_cast<T>(b * samples.inv_temperature);
    tile.log_count[i] = static_cast<T>(sigmoid ? merged + copies : merged);
    if (sigmoid) {
      tile.copies[i] = static_cast<T>(std::exp(copies));
    } else {
      tile.log_copies[i] = static_cast<T>(copies);
    }
  }
}

}  // namespace

// Packs panels [first_panel, last_panel) of the samples into the tile.
template <class T>
void gather_tile(const Samples& samples, int64_t first_panel, int64_t last_panel,
                 const Tile<T>& tile) {
  with_operand<T>(samples.weight, [&](const auto* weight) {
    gather<T>(weight, samples, first_panel, last_panel, tile);
  });
  with_storage<T>(samples.bias.data, samples.bias.dtype, [&](const auto* bias) {
    const int64_t begin = first_panel * kPanel<T>, end = last_panel * kPanel<T>;
    if (samples.negatives != nullptr) return gather_negatives<T>(bias, samples, begin, end, tile);
    gather_shift<T>(bias, samples, begin, end, tile.shift, tile.log_copies);
  });
}

template void gather_tile(const Samples&, int64_t, int64_t, const Tile<float>&);
#if !defined(SSC_BF16_PAIRS)
template void gather_tile(const Samples&, int64_t, int64_t, const Tile<double>&);
#endif

}  // namespace ssc::SSC_ISA
