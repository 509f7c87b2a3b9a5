// A warp per row. Row-wise rules read the gradient twice, the second time from the cache; nothing
// else is touched twice.
#include <algorithm>

#include "csrc/cuda/device/grid.h"
#include "csrc/cuda/update/arithmetic.h"
#include "csrc/cuda/update/columns.h"
#include "csrc/cuda/update/row_gradient.h"
#include "csrc/cuda/update/update.h"

namespace ssc::cuda {
namespace {

using A = Arithmetic;

constexpr int kThreads = 256;

// The second moment of a row-wise rule: its root before and after.
template <class T>
struct Roots {
  T old, now;
};

// The numbers that all columns of a row share.
template <class T>
struct RowStep {
  UpdateRule rule;
  bool pays, steps, momentum;
  Debts<T> debt;
  Roots<T> roots;
};

// The columns of a lane, with debts and step as in csrc/cpu/kernels/update_rows.cpp.
template <class T>
__device__ __forceinline__ void pay_columns(const RowStep<T>& row, Columns<T>& p, Columns<T>& m,
                                            Columns<T>& v) {
  if (row.rule == UpdateRule::sgd) {
#pragma unroll
    for (int k = 0; k < kColumns; ++k) pay_sgd<A, T>(row.debt, p.at[k], m.at[k]);
    return;
  }
  const bool takes_root = !is_row_wise(row.rule) && row.debt.moves != T(0);
#pragma unroll
  for (int k = 0; k < kColumns; ++k) {
    T x = is_row_wise(row.rule) ? row.roots.old : v.at[k];
    if (takes_root) x = A::root(x);
    pay_adam<A, T>(row.debt, x, p.at[k], m.at[k]);
    v.at[k] = A::mul(v.at[k], static_cast<T>(row.debt.beta2));
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

template <bool kWide, class P, class S>
class RowKernel {
 public:
  using T = typename AccumulatorOf<P>::Type;

  __device__ __forceinline__ RowKernel(const RowUpdate<P, S>& update, const StepNumbers* numbers)
      : u_(update),
        scalars_(element_scalars<T>(numbers->options, numbers->step)),
        now_(numbers->step.step),
        lane_(static_cast<int>(threadIdx.x) % 32) {}

  __device__ __forceinline__ void run(const RowPlan& plan, int64_t at) const {
    const int64_t n = plan.begin + at;
    const RowTask task = plan.tasks == nullptr ? RowTask::step : plan.tasks[at];
    if (task == RowTask::none) return;
    const int64_t row = u_.ids == nullptr ? n : u_.ids[n];
    const int64_t left = u_.total - row * u_.dim, length = left < u_.dim ? left : u_.dim;
    const bool alone = plan.used == nullptr || n + 1 >= u_.count || u_.ids[n + 1] != row;
    const RowGradient<P> gradient = {u_.values, u_.ids, u_.order,  u_.dim, u_.count,
                                     row,       n,      plan.used, alone};
    RowStep<T> step = {u_.rule, task == RowTask::pay, u_.values != nullptr, u_.first != nullptr, {},
                       {}};
    if (step.pays) {
      const Debt& d = plan.debts[at];
      step.debt = {static_cast<T>(d.keep),  static_cast<T>(d.beta1),     static_cast<T>(d.beta2),
                   static_cast<T>(d.moves), static_cast<T>(d.eps_share), static_cast<T>(d.mixed)};
    }
    if (u_.row_second != nullptr) step.roots = update_row_second(gradient, step, row, length);
    for (int64_t c = lane_ * kColumns; c - lane_ * kColumns < length; c += kSumWidth) {
      update_columns(gradient, step, row, length, c);
    }
  }

 private:
  __device__ __forceinline__ Columns<T> read_param(int64_t row, int64_t length, int64_t c) const {
    Columns<T> p = read_columns<kWide, T>(u_.param + row * u_.stride, c, length);
    if (u_.compensation != nullptr) {
      const Columns<T> rest = read_columns<kWide, T>(u_.compensation + row * u_.dim, c, length);
#pragma unroll
      for (int k = 0; k < kColumns; ++k) p.at[k] += rest.at[k];
    }
    return p;
  }

  // Random bits are drawn for two arrays at a time; where there are three, the last two late, since
  // registers are few.
  __device__ __forceinline__ void write_arrays(const Columns<T>& p, const Columns<T>& m,
                                               const Columns<T>& v, int64_t row, int64_t length,
                                               int64_t c) const {
    using enum RoundedArray;
    const bool of_param = sizeof(P) == 2 && u_.rounding == Rounding::stochastic;
    const bool of_first = sizeof(S) == 2 && u_.first != nullptr;
    const bool of_second = sizeof(S) == 2 && u_.second != nullptr;
    uint64_t random = 0, other = 0;
    if (of_first && of_second) {
      if (of_param) random = philox_draw(rounding_key(u_.seed, now_, row, param), c / kColumns);
    } else if (of_param || of_first || of_second) {
      draw_two(row, c, param, of_second ? second : first, random, other);
    }
    write_param(p, random, row, length, c);
    random = other;
    if (of_first && of_second) draw_two(row, c, first, second, random, other);
    if (u_.first != nullptr) write_moment(m, u_.first, random, row, length, c);
    if (u_.second != nullptr) write_moment(v, u_.second, other, row, length, c);
  }

  // Neighbouring lanes have draws of the same counter: each computes one array's, and they swap.
  // For whole warps.
  __device__ __forceinline__ void draw_two(int64_t row, int64_t c, RoundedArray a, RoundedArray b,
                                           uint64_t& of_a, uint64_t& of_b) const {
    const bool odd = lane_ % 2 != 0;
    const int own = odd ? static_cast<int>(b) : static_cast<int>(a);
    const PhiloxKey key = rounding_key(u_.seed, now_, row, static_cast<RoundedArray>(own));
    const auto counter = key.offset + static_cast<uint64_t>(c / (2 * kColumns));
    const PhiloxWords<uint64_t> w =
        philox4x32_10<ScalarLane>(philox_counter<ScalarLane>(counter, key.subsequence), key.seed);
    const uint64_t of_even = join_words<ScalarLane>(w.w0, w.w1);
    const uint64_t of_odd = join_words<ScalarLane>(w.w2, w.w3);
    const uint64_t swapped = __shfl_xor_sync(~0u, odd ? of_even : of_odd, 1);
    of_a = odd ? swapped : of_even;
    of_b = odd ? of_odd : swapped;
  }

  __device__ __forceinline__ void write_param(const Columns<T>& p, uint64_t random, int64_t row,
                                              int64_t length, int64_t c) const {
    P* const to = u_.param + row * u_.stride;
    if constexpr (sizeof(P) == 2) {
      if (u_.rounding == Rounding::stochastic) {
        write_columns<kWide>(rounded<P>(p, random), to, c, length);
        return;
      }
    }
    const Columns<P> stored = rounded<P>(p);
    write_columns<kWide>(stored, to, c, length);
    if (u_.compensation == nullptr) return;
    Columns<T> rest;
#pragma unroll
    for (int k = 0; k < kColumns; ++k) rest.at[k] = p.at[k] - to_accumulator(stored.at[k]);
    write_columns<kWide>(rounded<P>(rest), u_.compensation + row * u_.dim, c, length);
  }

  __device__ __forceinline__ void write_moment(const Columns<T>& x, S* rows, uint64_t random,
                                               int64_t row, int64_t length, int64_t c) const {
    S* const to = rows + row * u_.dim;
    if constexpr (sizeof(S) == 2) {
      write_columns<kWide>(rounded<S>(x, random), to, c, length);
    } else {
      write_columns<kWide>(x, to, c, length);
    }
  }

  __device__ __forceinline__ Roots<T> update_row_second(const RowGradient<P>& gradient,
                                                        const RowStep<T>& step, int64_t row,
                                                        int64_t length) const {
    T v = u_.row_second[row];
    Roots<T> roots = {A::root(v), T(0)};
    if (step.pays) v = A::mul(v, static_cast<T>(step.debt.beta2));
    if (step.steps) {
      const T sum = sum_of_squares(gradient, row, length);
      v = add_square<A>(scalars_, A::div(sum, static_cast<T>(length)), v, is_adam(step.rule));
      roots.now = A::root(v);
    }
    __syncwarp();  // all have read it
    if (lane_ == 0) u_.row_second[row] = v;
    return roots;
  }

  __device__ __forceinline__ T sum_of_squares(const RowGradient<P>& gradient, int64_t row,
                                              int64_t length) const {
    Columns<T> sums = {};
    for (int64_t c = lane_ * kColumns; c - lane_ * kColumns < length; c += kSumWidth) {
      const Columns<T> g = gradient.template sum<kWide, T>(c, length);
      Columns<T> p = {};
      if (scalars_.l2 != T(0)) p = read_param(row, length, c);
#pragma unroll
      for (int k = 0; k < kColumns; ++k) {
        const T full = full_gradient<A>(scalars_, g.at[k], p.at[k]);
        if (c + k < length) sums.at[k] += A::mul(full, full);
      }
    }
    return sum_of_columns(sums);
  }

  __device__ __forceinline__ void update_columns(const RowGradient<P>& gradient,
                                                 const RowStep<T>& step, int64_t row,
                                                 int64_t length, int64_t c) const {
    Columns<T> g = {}, m = {}, v = {};
    if (step.steps) g = gradient.template sum<kWide, T>(c, length);
    Columns<T> p = read_param(row, length, c);
    if (u_.first != nullptr) m = read_columns<kWide, T>(u_.first + row * u_.dim, c, length);
    if (u_.second != nullptr) v = read_columns<kWide, T>(u_.second + row * u_.dim, c, length);
    if (step.pays) pay_columns(step, p, m, v);
    if (step.steps) step_columns(scalars_, step, g, p, m, v);
    write_arrays(p, m, v, row, length, c);
  }

  const RowUpdate<P, S>& u_;
  ElementScalars<T> scalars_;
  int64_t now_;
  int lane_;
};

template <bool kWide, class P, class S>
__global__ void __launch_bounds__(kThreads, sizeof(P) == 8 ? 2 : 4)
    row_update_kernel(const __grid_constant__ RowUpdate<P, S> update, const StepNumbers* numbers,
                      const __grid_constant__ RowPlan plan) {
  if (numbers->stopped) return;
  const RowKernel<kWide, P, S> kernel(update, numbers);
  constexpr int kWarps = kThreads / 32;
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
  if (owes) plan.debts = reinterpret_cast<Debt*>(bytes);
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
  const bool steps = u.values != nullptr, owes = u.last_step != nullptr;
  RowPlan plan = plan_in(workspace, u.count, u.ids != nullptr, owes, steps);
  const PlannedRows rows = {
      u.ids, u.order, u.values, u.rows, u.dim, static_cast<int>(sizeof(P)), u.last_step, u.history};
  const auto kernel = is_wide(u) ? row_update_kernel<true, P, S> : row_update_kernel<false, P, S>;
  for (const int64_t most = plan.count; plan.begin < u.count; plan.begin += most) {
    plan.count = std::min(most, u.count - plan.begin);
    if (plan.tasks != nullptr) {
      const cudaError_t error = plan_rows(rows, numbers, plan, stream);
      if (error != cudaSuccess) return error;
    }
    const cudaError_t error =
        launch(kernel, element_blocks(plan.count * 32), kThreads, 0, stream, u, numbers, plan);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

#define SSC_UPDATE_ROWS_INSTANCE(P, S) \
  template cudaError_t update_rows(const RowUpdate<P, S>&, const StepNumbers*, void*, cudaStream_t)
SSC_FOR_UPDATES(SSC_UPDATE_ROWS_INSTANCE);
#undef SSC_UPDATE_ROWS_INSTANCE

}  // namespace ssc::cuda
