// ldmatrix and mma.sync: every lane posts the addresses of its operands; the last one to arrive
// computes for all. csrc/cuda/device/mma.h describes the fragments.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <bit>
#include <cstring>

#include "csrc/simt/checks.h"
#include "csrc/simt/executor.h"
#include "csrc/simt/report.h"

namespace ssc::simt {
namespace {

struct LoadOperands {
  uint32_t* out;
  const void* row;
  int count;
  bool transposed;
  const void* pc;
};

struct MmaOperands {
  MmaType type;
  float* d;
  const uint32_t *a, *b;
};

template <class T>
const T& operands(const Thread& thread) {
  return *reinterpret_cast<const T*>(thread.exchange.value);
}

double widen(uint16_t bits, MmaType type) {
  if (type == MmaType::bf16) return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  __half_raw raw;
  raw.x = bits;
  return __half2float(__half(raw));
}
double widen_low(uint32_t pair, MmaType type) { return widen(static_cast<uint16_t>(pair), type); }
double widen_high(uint32_t pair, MmaType type) {
  return widen(static_cast<uint16_t>(pair >> 16), type);
}

// The instruction ignores the low 13 bits of its tf32 inputs.
double widen_tf32(uint32_t bits) { return std::bit_cast<float>(bits & 0xffffe000u); }

constexpr int kRows = 16, kColumns = 8, kMaxDepth = 16;

struct Tile {
  double a[kRows][kMaxDepth], b[kMaxDepth][kColumns];
};

// sums = a b, each sum over k in order; the loop over columns is the vectorised one. Products of
// two 11-bit mantissas are exact in double, so it doesn't matter which clones fuse them with the
// sums.
#if defined(__x86_64__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
void multiply(const Tile& tile, int depth, double (&sums)[kRows][kColumns]) {
  for (int row = 0; row < kRows; ++row) {
    double row_sums[kColumns] = {};
    for (int k = 0; k < depth; ++k) {
      const double a = tile.a[row][k];
      for (int column = 0; column < kColumns; ++column) row_sums[column] += a * tile.b[k][column];
    }
    std::memcpy(sums[row], row_sums, sizeof(row_sums));
  }
}

void gather_16bit(Thread* lanes, MmaType type, Tile& tile) {
  for (int lane = 0; lane < 32; ++lane) {
    const MmaOperands& o = operands<MmaOperands>(lanes[lane]);
    const int group = lane / 4, pair = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = group + 8 * (i % 2), depth = 2 * pair + 8 * (i / 2);
      tile.a[row][depth] = widen_low(o.a[i], type);
      tile.a[row][depth + 1] = widen_high(o.a[i], type);
    }
    for (int i = 0; i < 2; ++i) {
      tile.b[2 * pair + 8 * i][group] = widen_low(o.b[i], type);
      tile.b[2 * pair + 8 * i + 1][group] = widen_high(o.b[i], type);
    }
  }
}

void gather_tf32(Thread* lanes, Tile& tile) {
  for (int lane = 0; lane < 32; ++lane) {
    const MmaOperands& o = operands<MmaOperands>(lanes[lane]);
    const int group = lane / 4, pair = lane % 4;
    for (int i = 0; i < 4; ++i) {
      tile.a[group + 8 * (i % 2)][pair + 4 * (i / 2)] = widen_tf32(o.a[i]);
    }
    for (int i = 0; i < 2; ++i) tile.b[pair + 4 * i][group] = widen_tf32(o.b[i]);
  }
}

}  // namespace

void load_matrices(const Site* site, uint32_t* out, const void* row, int count, bool transposed) {
  const LoadOperands operands{out, row, count, transposed, __builtin_return_address(0)};
  collective_at(site, {Op::ldmatrix, kFullWarp, reinterpret_cast<uint64_t>(&operands)},
                operands.pc);
}

void multiply_accumulate(const Site* site, MmaType type, float* d, const uint32_t* a,
                         const uint32_t* b) {
  const MmaOperands operands{type, d, a, b};
  collective_at(site, {Op::mma, kFullWarp, reinterpret_cast<uint64_t>(&operands)},
                __builtin_return_address(0));
}

void combine_ldmatrix(Thread* lanes) {
  const auto count = static_cast<uint32_t>(operands<LoadOperands>(lanes[0]).count);
  uint16_t matrix[4][8][8];
  const void* rows[kWarp] = {};
  for (uint32_t lane = 0; lane < 8 * count; ++lane) {
    const LoadOperands& o = operands<LoadOperands>(lanes[lane]);
    rows[lane] = o.row;
    if (reinterpret_cast<uint64_t>(o.row) % 16 != 0) {
      report(Finding::misaligned, o.pc, "ldmatrix: lane ", lane, " gives row address ",
             hex(reinterpret_cast<uint64_t>(o.row)), ", which is not a multiple of 16");
      abort_launch();
    }
  }
  checks_ldmatrix(lanes, rows, count, operands<LoadOperands>(lanes[0]).pc);
  for (uint32_t lane = 0; lane < 8 * count; ++lane) {
    std::memcpy(matrix[lane / 8][lane % 8], rows[lane], 16);
  }
  for (int lane = 0; lane < 32; ++lane) {
    const LoadOperands& o = operands<LoadOperands>(lanes[lane]);
    const int row = lane / 4, column = 2 * (lane % 4);
    for (uint32_t m = 0; m < count; ++m) {
      const uint32_t low = o.transposed ? matrix[m][column][row] : matrix[m][row][column];
      const uint32_t high = o.transposed ? matrix[m][column + 1][row] : matrix[m][row][column + 1];
      o.out[m] = low | high << 16;
    }
  }
}

// The hardware's order and width of accumulation are not documented; here the sum is in double and
// rounded once, so results differ from hardware's in the last bits.
void combine_mma(Thread* lanes) {
  const MmaType type = operands<MmaOperands>(lanes[0]).type;
  const int depth = type == MmaType::tf32 ? 8 : 16;
  Tile tile;
  if (type == MmaType::tf32) {
    gather_tf32(lanes, tile);
  } else {
    gather_16bit(lanes, type, tile);
  }
  double sums[kRows][kColumns];
  multiply(tile, depth, sums);
  for (int lane = 0; lane < 32; ++lane) {
    float* d = operands<MmaOperands>(lanes[lane]).d;
    for (int i = 0; i < 4; ++i) {
      const double sum = sums[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
      d[i] = static_cast<float>(static_cast<double>(d[i]) + sum);
    }
  }
}

}  // namespace ssc::simt
