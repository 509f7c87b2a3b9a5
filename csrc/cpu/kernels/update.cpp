// The numbers of an optimizer's step, its history and its checks, and the table of these kernels.
// Compiled once per instruction set, with -ffp-contract=off (csrc/core/row_update.h).
#include "csrc/cpu/kernels/arithmetic.h"
#include "csrc/cpu/kernels/lane.h"
#include "csrc/cpu/update/table.h"

namespace ssc::SSC_ISA {

// kernels/update_rows.cpp
void update_rows(const RowUpdate& update, decltype(SampleKernels::philox) philox, int64_t begin,
                 int64_t end);

namespace {

using A = Arithmetic;

// --- the history ------------------------------------------------------------------------------

StepScalars scalars(const UpdateOptions& options, int64_t step) {
  return step_scalars<A>(options, step);
}

template <class L>
SSC_INLINE void add_step(const UpdateOptions& o, const StepMove& move, double* log_beta1,
                         double* log_beta2, double* const (&moves)[4], int64_t at) {
  using F = typename L::F;
  F m[4];
  for (int i = 0; i < 4; ++i) m[i] = L::load_float(moves[i] + at);
  if (o.rule == UpdateRule::sgd) {
    multiply_left<L>(move.matrix, m[0], m[1], m[2], m[3]);
  } else {
    add_moves<L>(move, L::load_float(log_beta1 + at), L::load_float(log_beta2 + at), m[0], m[1]);
  }
  for (int i = 0; i < 4; ++i) L::put_number(moves[i] + at, m[i]);
}

void close(const RowUpdate& update) {
  const UpdateHistory& h = update.history;
  const UpdateOptions& o = update.options;
  open_step<A>(o, update.step, h);
  if (!o.replay) return;
  const StepMove move = step_move<A>(o, update.step, h);
  double* const moves[4] = {h.column(kMoves), h.column(kMoves + 1), h.column(kMoves + 2),
                            h.column(kMoves + 3)};
  const int64_t first = update.step.step > h.horizon ? update.step.step - h.horizon : 0;
  for (int64_t s = first; s < update.step.step;) {
    int64_t at = s % h.capacity;
    const int64_t left = update.step.step - s, whole = h.capacity - at;
    const int64_t end = at + (left < whole ? left : whole);
    s += end - at;
    for (; at + Lane::kWidth <= end; at += Lane::kWidth) {
      add_step<Lane>(o, move, h.column(kLogBeta1), h.column(kLogBeta2), moves, at);
    }
    for (; at < end; ++at) {
      add_step<OneLane>(o, move, h.column(kLogBeta1), h.column(kLogBeta2), moves, at);
    }
  }
}

// --- checks -----------------------------------------------------------------------------------

// x − x is 0, or NaN for an inf and a NaN.
template <class T, class S>
SSC_INLINE bool all_finite(const S* x, int64_t count) {
  constexpr int kSums = 4, L = kLanes<T>;
  Vec<T> sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums * L <= count; i += kSums * L) {
    for (int k = 0; k < kSums; ++k) {
      const Vec<T> v = load_as<T>(x + i + k * L);
      sums[k] += v - v;
    }
  }
  T sum = sum_lanes<T>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < count; ++i) {
    const T v = get<T>(x + i);
    sum += v - v;
  }
  return sum == 0;
}

bool finite(const void* values, DType dtype, int64_t count) {
  switch (dtype) {
    case DType::f64:
      return all_finite<double>(static_cast<const double*>(values), count);
    case DType::f32:
      return all_finite<float>(static_cast<const float*>(values), count);
    case DType::bf16:
      return all_finite<float>(static_cast<const BFloat16*>(values), count);
    case DType::f16:
      return all_finite<float>(static_cast<const Float16*>(values), count);
  }
  return true;
}

}  // namespace

extern const UpdateKernels kUpdateKernels;
const UpdateKernels kUpdateKernels = {update_rows, scalars, close, finite};

}  // namespace ssc::SSC_ISA
