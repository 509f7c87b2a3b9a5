// A warp per row. Row-wise rules read the gradient twice, the second time from the cache; nothing
// else is touched twice.
#include <algorithm>

#include "csrc/cuda/device/grid.h"
#include "csrc/cuda/update/arithmetic.h"
#include "csrc/cuda/update/columns.h"
#include "csrc/cuda/update/random_bits.h"
#include "csrc/cuda/update/row_gradient.h"
#include "csrc/cuda/update/update.h"

namespace ssc::cuda {
namespace {

using A = Arithmetic;

constexpr int kThreads = 256, kWarps = kThreads / 32;
// A row has at most so many: the columns of its next turn are an int too.
constexpr int64_t kMostColumns = (int64_t{1} << 31) - 2 * kSumWidth;

// The second moment of a row-wise rule: its root before and after.
template <class T>
struct Roots {
  T old, now;
};

// The numbers that all columns of a row share.
template <class T>
struct RowStep {
  UpdateRule rule;
  bool steps, momentum;
  const Debts<T>* debt;  // null: the row doesn't pay; read anew each turn, as registers are few
  Roots<T> roots;
};

// The columns of a lane, with debts and step as in csrc/cpu/kernels/update_rows.cpp.
template <class T>
__device__ __forceinline__ void pay_columns(const RowStep<T>& row, Columns<T>& p, Columns<T>& m,
                                            Columns<T>& v) {
  const Debts<T> debt = *row.debt;
  if (row.rule == UpdateRule::sgd) {
#pragma unroll
    for (int k = 0; k < kColumns; ++k) pay_sgd<A, T>(debt, p.at[k], m.at[k]);
    return;
  }
  const bool takes_root = !is_row_wise(row.rule) && debt.moves != T(0);
#pragma unroll
  for (int k = 0; k < kColumns; ++k) {
    T x = is_row_wise(row.rule) ? row.roots.old : v.at[k];
    if (takes_root) x = A::root(x);
    pay_adam<A, T>(debt, x, p.at[k], m.at[k]);
    v.at[k] = A::mul(v.at[k], debt.beta2);
  }
}

template <class T>
__device__ __forceinline__ void step_columns(const ElementScalars<T>& s, const RowStep<T>& row,
                                             Columns<T> g, Columns<T>& p, Columns<T>& m,
                                             Columns<T>& v) {
#pragma unroll
  for (int k = 0; k < kColumns; ++k) g.at[k] = full_gradient<A>(s, g.at[k], p.at[k]);
  if (row.rule == UpdateRule::sgd) {
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      if (row.momentum) {
        step_momentum<A>(s, g.at[k], p.at[k], m.at[k]);
      } else {
        step_sgd<A>(s, g.at[k], p.at[k]);
      }
    }
    return;
  }
  const bool adam = is_adam(row.rule);
  Columns<T> roots;
#pragma unroll
  for (int k = 0; k < kColumns; ++k) roots.at[k] = row.roots.now;
  if (!is_row_wise(row.rule)) {
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      v.at[k] = add_square<A>(s, A::mul(g.at[k], g.at[k]), v.at[k], adam);
      roots.at[k] = A::root(v.at[k]);
    }
  }
  if (adam) {
#pragma unroll
    for (int k = 0; k < kColumns; ++k) step_adam<A>(s, g.at[k], roots.at[k], p.at[k], m.at[k]);
  } else {
#pragma unroll
    for (int k = 0; k < kColumns; ++k) step_adagrad<A>(s, g.at[k], roots.at[k], p.at[k]);
  }
}

// Where a row begins in matrices with the parameter's stride and in those with its width.
struct RowBegin {
  int64_t param, state;
};

// The columns of a lane. Lanes beyond the end of a wide row compute with its last columns, and
// write nothing.
struct Turn {
  int own, length;
  int c;  // to be read

  template <bool kWide>
  __device__ __forceinline__ static Turn at(int own, int length) {
    return {own, length, kWide && own > length - kColumns ? length - kColumns : own};
  }
};

// kAdam: the rule is Adam, the one with two moments of each element. What it never asks and never
// holds leaves its kernel the registers that it needs.
template <bool kWide, bool kAdam, class P, class S>
class RowKernel {
 public:
  using T = typename AccumulatorOf<P>::Type;

  __device__ __forceinline__ RowKernel(const RowUpdate<P, S>& update, const StepNumbers* numbers,
                                       const RoundKeys& keys)
      : u_(update),
        keys_(keys),
        scalars_(element_scalars<T>(numbers->options, numbers->step)),
        now_(numbers->step.step),
        lane_(static_cast<int>(threadIdx.x) % 32) {}

  __device__ __forceinline__ void run(const RowPlan& plan, int64_t at) const {
    const int64_t n = plan.begin + at;
    const RowTask task = plan.tasks == nullptr ? RowTask::step : plan.tasks[at];
    if (task == RowTask::none) return;
    const int64_t row = u_.ids == nullptr ? n : u_.ids[n];
    const int64_t left = u_.total - row * u_.dim;
    const auto length = static_cast<int>(left < u_.dim ? left : u_.dim);
    const bool alone = plan.used == nullptr || n + 1 >= u_.count || u_.ids[n + 1] != row;
    const RowGradient<P> gradient(u_.values, u_.ids, u_.order, u_.dim, u_.count, row, n, plan.used,
                                  alone);
    RowStep<T> step = {u_.rule, u_.values != nullptr, u_.first != nullptr, nullptr, {}};
    if (kAdam) step.rule = UpdateRule::adam;
    if (task == RowTask::pay) step.debt = static_cast<const Debts<T>*>(plan.debts) + at;
    const RowBegin begin = {row * u_.stride, row * u_.dim};
    if (!kAdam && u_.row_second != nullptr) {
      step.roots = update_row_second(gradient, step, begin, row, length);
    }
    update_row(gradient, step, begin, row, length);
  }

 private:
  __device__ __forceinline__ Columns<T> read_param(const RowBegin& begin, const Turn& at) const {
    Columns<T> p = read_columns<kWide, T>(u_.param + begin.param, at.c, at.length);
    if (u_.compensation != nullptr) {
      const auto rest = read_columns<kWide, T>(u_.compensation + begin.state, at.c, at.length);
#pragma unroll
      for (int k = 0; k < kColumns; ++k) p.at[k] += rest.at[k];
    }
    return p;
  }

  __device__ __forceinline__ bool has_first() const { return kAdam || u_.first != nullptr; }
  __device__ __forceinline__ bool has_second() const { return kAdam || u_.second != nullptr; }
  __device__ __forceinline__ bool rounds_param() const {
    return sizeof(P) == 2 && u_.rounding == Rounding::stochastic;
  }

  __device__ __forceinline__ void write_param(const Columns<T>& p, ColumnBits random,
                                              const RowBegin& begin, const Turn& at) const {
    if (kWide && at.c != at.own) return;
    P* const to = u_.param + begin.param;
    if constexpr (sizeof(P) == 2) {
      if (rounds_param()) {
        write_columns<kWide>(rounded<P>(p, random), to, at.c, at.length);
        return;
      }
    }
    const Columns<P> stored = rounded<P>(p);
    write_columns<kWide>(stored, to, at.c, at.length);
    if (u_.compensation == nullptr) return;
    Columns<T> rest;
#pragma unroll
    for (int k = 0; k < kColumns; ++k) rest.at[k] = p.at[k] - to_accumulator(stored.at[k]);
    write_columns<kWide>(rounded<P>(rest), u_.compensation + begin.state, at.c, at.length);
  }

  __device__ __forceinline__ void write_moment(const Columns<T>& x, S* rows, ColumnBits random,
                                               const RowBegin& begin, const Turn& at) const {
    if (kWide && at.c != at.own) return;
    S* const to = rows + begin.state;
    if constexpr (sizeof(S) == 2) {
      write_columns<kWide>(rounded<S>(x, random), to, at.c, at.length);
    } else {
      write_columns<kWide>(x, to, at.c, at.length);
    }
  }

  __device__ __forceinline__ Roots<T> update_row_second(const RowGradient<P>& gradient,
                                                        const RowStep<T>& step,
                                                        const RowBegin& begin, int64_t row,
                                                        int length) const {
    T v = u_.row_second[row];
    Roots<T> roots = {A::root(v), T(0)};
    if (step.debt != nullptr) v = A::mul(v, step.debt->beta2);
    if (step.steps) {
      const T sum = sum_of_squares(gradient, begin, length);
      v = add_square<A>(scalars_, A::div(sum, static_cast<T>(length)), v, is_adam(step.rule));
      roots.now = A::root(v);
    }
    __syncwarp();  // all have read it
    if (lane_ == 0) u_.row_second[row] = v;
    return roots;
  }

  __device__ __forceinline__ T sum_of_squares(const RowGradient<P>& gradient, const RowBegin& begin,
                                              int length) const {
    Columns<T> sums = {};
    for (int c = lane_ * kColumns; c - lane_ * kColumns < length; c += kSumWidth) {
      const Turn at = Turn::at<kWide>(c, length);
      const Columns<T> g = gradient.template sum<kWide, T>(at.c, length);
      Columns<T> p = {};
      if (scalars_.l2 != T(0)) p = read_param(begin, at);
#pragma unroll
      for (int k = 0; k < kColumns; ++k) {
        const T full = full_gradient<A>(scalars_, g.at[k], p.at[k]);
        if (c + k < length) sums.at[k] += A::mul(full, full);
      }
    }
    return sum_of_columns(sums);
  }

  struct Numbers {
    Columns<T> p, m, v;
  };

  // Columns [c, c + 4) with their debts paid and the step taken.
  __device__ __forceinline__ Numbers updated(const RowGradient<P>& gradient, const RowStep<T>& step,
                                             const RowBegin& begin, const Turn& at) const {
    Columns<T> g = {};
    Numbers x = {};
    if (step.steps) g = gradient.template sum<kWide, T>(at.c, at.length);
    x.p = read_param(begin, at);
    if (has_first()) x.m = read_columns<kWide, T>(u_.first + begin.state, at.c, at.length);
    if (has_second()) x.v = read_columns<kWide, T>(u_.second + begin.state, at.c, at.length);
    if (step.debt != nullptr) pay_columns(step, x.p, x.m, x.v);
    if (step.steps) step_columns(scalars_, step, g, x.p, x.m, x.v);
    return x;
  }

  __device__ __forceinline__ void update_row(const RowGradient<P>& gradient, const RowStep<T>& step,
                                             const RowBegin& begin, int64_t row, int length) const {
    const RowDraws draws(keys_, now_, row);
    KeptBits<kWide> kept = {};
    const int own = lane_ * kColumns;
    for (int c = own; c - own < length; c += kSumWidth) {
      const Turn at = Turn::at<kWide>(c, length);
      const Numbers x = updated(gradient, step, begin, at);
      if (kWide) __syncwarp();  // lanes beyond the end have read what another one writes
      if constexpr (kDraws) {
        round(without_nan(x), draws, kept, begin, at);
      } else {
        write_param(x.p, {}, begin, at);
        if (has_first()) write_moment(x.m, u_.first, {}, begin, at);
        if (has_second()) write_moment(x.v, u_.second, {}, begin, at);
      }
    }
  }

  // The numbers with NaN as rounding wants them.
  __device__ __forceinline__ static Numbers without_nan(Numbers x) {
    float all = 0;
    if constexpr (sizeof(P) == 2) all = with_any_nan(all, x.p);
    if constexpr (sizeof(S) == 2) all = with_any_nan(with_any_nan(all, x.m), x.v);
    if (all != all) {
      if constexpr (sizeof(P) == 2) keep_nan(x.p);
      if constexpr (sizeof(S) == 2) keep_nan(x.m), keep_nan(x.v);
    }
    return x;
  }

  // Each counter has the bits of two lanes, and each lane computes one for both: the even lane that
  // of one array and the odd lane that of another, or where one array is left over, those of this
  // turn and of the next.
  __device__ __forceinline__ void round(const Numbers& x, const RowDraws& draws,
                                        KeptBits<kWide>& kept, const RowBegin& begin,
                                        const Turn& at) const {
    using enum RoundedArray;
    const bool of_moments = sizeof(S) == 2 && (has_first() || has_second());
    const RoundedArray moment = kAdam || !has_second() ? first : second;
    RoundedArray left = moment;
    if (kAdam && of_moments) {
      left = second;
    } else if (rounds_param()) {
      left = param;
    }
    TwoDraws two = {};
    if (of_moments && (kAdam || rounds_param())) {
      two = draws.draw(draws.place(rounds_param() ? param : second, at.own),
                       draws.place(moment, at.own));
    } else if (of_moments || rounds_param()) {
      two.of_even = two.of_odd = kept.draw(draws, left, at.own);
    }
    write_param(x.p, two.of_even, begin, at);
    if (has_first()) write_moment(x.m, u_.first, two.of_odd, begin, at);
    if (!has_second()) return;
    if (kAdam && of_moments) {
      two.of_odd = rounds_param() ? kept.draw(draws, left, at.own) : two.of_even;
    }
    write_moment(x.v, u_.second, two.of_odd, begin, at);
  }

  static constexpr bool kDraws = sizeof(P) == 2 || sizeof(S) == 2;

  const RowUpdate<P, S>& u_;
  const RoundKeys& keys_;
  ElementScalars<T> scalars_;
  int64_t now_;
  int lane_;
};

template <bool kWide, bool kAdam, class P, class S>
__global__ void __launch_bounds__(kThreads, sizeof(P) == 8 ? 2 : 4)
    row_update_kernel(const __grid_constant__ RowUpdate<P, S> update, const StepNumbers* numbers,
                      const __grid_constant__ RowPlan plan,
                      const __grid_constant__ RoundKeys keys) {
  if (numbers->stopped) return;
  const RowKernel<kWide, kAdam, P, S> kernel(update, numbers, keys);
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; at < plan.count;
       at += static_cast<int64_t>(gridDim.x) * kWarps) {
    kernel.run(plan, at);
  }
}

// Whether the 4 columns of a lane are aligned in every array.
template <class P, class S>
bool is_wide(const RowUpdate<P, S>& u) {
  const auto aligned = [](const auto* rows) {
    const int64_t bytes = std::min<int64_t>(kColumns * static_cast<int64_t>(sizeof(*rows)), 16);
    return reinterpret_cast<uintptr_t>(rows) % static_cast<uintptr_t>(bytes) == 0;
  };
  return u.dim % kColumns == 0 && u.stride % kColumns == 0 && u.total % kColumns == 0 &&
         aligned(u.param) && aligned(u.values) && aligned(u.first) && aligned(u.second) &&
         aligned(u.compensation);
}

// --- plans ----------------------------------------------------------------------------------------

// So many of all rows have a plan at a time.
constexpr int64_t kPlannedRows = int64_t{1} << 18;

int64_t planned(int64_t count, bool chosen) {
  return chosen ? count : std::min(count, kPlannedRows);
}

// Debts, then the bits, then the tasks.
RowPlan plan_in(void* workspace, int64_t count, bool chosen, bool owes, bool steps) {
  const int64_t size = planned(count, chosen);
  auto* const bytes = static_cast<char*>(workspace);
  auto* const bits = bytes + (owes ? size * static_cast<int64_t>(sizeof(Debt)) : 0);
  auto* const tasks = bits + (chosen ? ceil_div(size, 32) * 4 : 0);
  RowPlan plan{};
  plan.count = size;
  if (owes) plan.debts = bytes;
  if (chosen && steps) plan.used = reinterpret_cast<uint32_t*>(bits);
  if (chosen || owes) plan.tasks = reinterpret_cast<RowTask*>(tasks);
  return plan;
}

}  // namespace

int64_t update_rows_bytes(int64_t count, bool chosen, bool owes) {
  const int64_t size = planned(count, chosen);
  return (owes ? size * static_cast<int64_t>(sizeof(Debt)) : 0) +
         (chosen ? ceil_div(size, 32) * 4 : 0) + (chosen || owes ? size : 0);
}

template <class P, class S>
cudaError_t update_rows(const RowUpdate<P, S>& u, const StepNumbers* numbers, void* workspace,
                        cudaStream_t stream) {
  if (u.count == 0 || u.dim == 0) return cudaSuccess;
  if (u.dim > kMostColumns) return cudaErrorInvalidValue;
  const bool steps = u.values != nullptr, owes = u.last_step != nullptr;
  RowPlan plan = plan_in(workspace, u.count, u.ids != nullptr, owes, steps);
  const PlannedRows rows = {
      u.ids, u.order, u.values, u.rows, u.dim, static_cast<int>(sizeof(P)), u.last_step, u.history};
  const bool wide = is_wide(u);
  const auto kernel =
      u.rule == UpdateRule::adam
          ? (wide ? row_update_kernel<true, true, P, S> : row_update_kernel<false, true, P, S>)
      : wide ? row_update_kernel<true, false, P, S>
             : row_update_kernel<false, false, P, S>;
  for (const int64_t most = plan.count; plan.begin < u.count; plan.begin += most) {
    plan.count = std::min(most, u.count - plan.begin);
    if (plan.tasks != nullptr) {
      const cudaError_t error = plan_rows(rows, numbers, plan, stream);
      if (error != cudaSuccess) return error;
    }
    const cudaError_t error = launch(kernel, element_blocks(plan.count * 32), kThreads, 0, stream,
                                     u, numbers, plan, round_keys(u.seed));
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

#define SSC_UPDATE_ROWS_INSTANCE(P, S) \
  template cudaError_t update_rows(const RowUpdate<P, S>&, const StepNumbers*, void*, cudaStream_t)
SSC_FOR_UPDATES(SSC_UPDATE_ROWS_INSTANCE);
#undef SSC_UPDATE_ROWS_INSTANCE

}  // namespace ssc::cuda
