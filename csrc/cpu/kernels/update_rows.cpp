// Steps of optimizers for single rows. Compiled once per instruction set, with -ffp-contract=off:
// the same bits on every CPU and on CUDA (csrc/core/row_update.h).
#include "csrc/cpu/base/prefetch.h"
#include "csrc/cpu/kernels/arithmetic.h"
#include "csrc/cpu/kernels/lane.h"
#include "csrc/cpu/kernels/rounded_storage.h"
#include "csrc/cpu/update/table.h"

namespace ssc::SSC_ISA {
namespace {

using A = Arithmetic;

constexpr int64_t kBlock = 16;  // positions whose debts are found together
constexpr int64_t kAhead = 4;   // rows between a prefetch and its use
// The lines of a row after which the processor's own prefetcher goes on; to ask for all is no faster
// (measured on AMD with rows of 256 B to 4 KiB).
constexpr int64_t kPrefetchedBytes = 4 * 64;

// T: the arithmetic; P: parameter and gradient; S: moments.
template <class T, class P, class S>
class RowKernel {
 public:
  RowKernel(const RowUpdate& update, decltype(SampleKernels::philox) philox)
      : u_(update),
        scalars_(element_scalars<T>(update.options, update.step)),
        random_{philox, update.seed, update.step.step, 0},
        rule_(update.options.rule) {}

  void run(int64_t begin, int64_t end) {
    // Short rows are done before a line of memory has come.
    const int64_t ahead = u_.dim * static_cast<int64_t>(sizeof(P)) < 256 ? kBlock : kAhead;
    prefetch_last_steps(begin, end);
    for (int64_t n = begin; n < begin + ahead && n < end; ++n) prefetch(n);
    for (int64_t first = begin; first < end; first += kBlock) {
      const int64_t count = end - first < kBlock ? end - first : kBlock;
      prefetch_last_steps(first + kBlock, end);
      Position positions[kBlock];
      for (int64_t i = 0; i < count; ++i) positions[i] = position(first + i);
      Debt debts[kBlock];  // of positions that owe
      if (u_.last_step != nullptr) find_debts(positions, debts, count);
      if (is_row_wise(rule_) && u_.values != nullptr) {
        for (int64_t i = 0; i < count; ++i) find_mean_square(positions[i], first + i);
      }
      for (int64_t i = 0; i < count; ++i) {
        if (first + i + ahead < end) prefetch(first + i + ahead);
        if (positions[i].row >= 0) do_row(positions[i], debts[i], first + i);
      }
    }
  }

 private:
  // Some columns of a row; null: the rule has no such number for each of them.
  struct Chunk {
    T* p = nullptr;
    T* m = nullptr;
    T* v = nullptr;
    const T* g = nullptr;
  };

  struct Position {
    int64_t row;   // −1: there is nothing to do
    int64_t paid;  // the step up to which the row had paid
    bool owes;
    T mean_square;  // of the gradient, for row-wise rules
  };

  int64_t row_of(int64_t n) const { return u_.ids == nullptr ? n : u_.ids[n]; }

  void prefetch(int64_t n) const {
    const int64_t row = row_of(n);
    if (row < 0 || row >= u_.rows) return;
    const auto lines = [](const void* from, int64_t bytes) {
      prefetch_lines<PrefetchTo::l2>(from, bytes < kPrefetchedBytes ? bytes : kPrefetchedBytes);
    };
    const int64_t dim = u_.dim;
    const int64_t size_p = dim * static_cast<int64_t>(sizeof(P));
    const int64_t size_s = dim * static_cast<int64_t>(sizeof(S));
    lines(param(row), size_p);
    if (u_.first != nullptr) lines(first(row), size_s);
    if (u_.second != nullptr && !is_row_wise(rule_)) lines(second(row), size_s);
    if (u_.second != nullptr && is_row_wise(rule_)) lines(&row_second(row), 1);
    if (u_.compensation != nullptr) lines(compensation(row), size_p);
  }

  // Those of a block of positions, which are read together.
  void prefetch_last_steps(int64_t begin, int64_t end) const {
    if (u_.last_step == nullptr) return;
    for (int64_t n = begin; n < begin + kBlock && n < end; ++n) {
      const int64_t row = row_of(n);
      if (row >= 0 && row < u_.rows) prefetch_lines<PrefetchTo::l2>(u_.last_step + row, 1);
    }
  }

  P* param(int64_t row) const { return static_cast<P*>(u_.param) + row * u_.stride; }
  P* compensation(int64_t row) const { return static_cast<P*>(u_.compensation) + row * u_.dim; }
  S* first(int64_t row) const { return static_cast<S*>(u_.first) + row * u_.dim; }
  S* second(int64_t row) const { return static_cast<S*>(u_.second) + row * u_.dim; }
  T& row_second(int64_t row) const { return static_cast<T*>(u_.second)[row]; }

  // Finds out what is to be done at position n, and marks the row as paid.
  Position position(int64_t n) const {
    const int64_t row = row_of(n), now = u_.step.step;
    Position at = {row, now, false, T(0)};
    const bool steps = u_.values != nullptr;
    const bool repeated = steps && n > 0 && u_.ids != nullptr && u_.ids[n - 1] == row;
    if (row < 0 || row >= u_.rows || repeated) {
      at.row = -1;
    } else if (u_.last_step != nullptr) {
      int32_t* const last = u_.last_step + row;
      if (steps) {
        at.paid = *last;
        *last = static_cast<int32_t>(now);
      } else {
        // Whoever comes first pays, if an id is there twice. Exchanges wait for each other's memory.
        at.paid = __atomic_load_n(last, __ATOMIC_RELAXED);
        if (at.paid < now) {
          at.paid = __atomic_exchange_n(last, static_cast<int32_t>(now), __ATOMIC_RELAXED);
        }
      }
      at.owes = at.paid < (steps ? now - 1 : now);
      if (!steps && !at.owes) at.row = -1;
    }
    return at;
  }

  // Fills in what rows owe, several at a time.
  void find_debts(const Position* positions, Debt* found, int64_t count) const {
    const int64_t now = u_.values != nullptr ? u_.step.step - 1 : u_.step.step;
    for (int64_t begin = 0; begin < count; begin += Lane::kWidth) {
      alignas(64) double paid[kHistoryColumns + 2][Lane::kWidth], debts[6][Lane::kWidth];
      bool any = false;
      for (int i = 0; i < Lane::kWidth; ++i) {
        const bool owes = begin + i < count && positions[begin + i].owes;
        any |= owes;
        const PaidSteps<double> at =
            paid_steps(u_.history, owes ? positions[begin + i].paid : now, now);
        for (int c = 0; c < kHistoryColumns; ++c) paid[c][i] = at.column[c];
        paid[kHistoryColumns][i] = at.age;
        paid[kHistoryColumns + 1][i] = at.log_keep_at_end;
      }
      if (!any) continue;
      PaidSteps<Lane::F> at;
      for (int c = 0; c < kHistoryColumns; ++c) at.column[c] = Lane::load_float(paid[c]);
      at.age = Lane::load_float(paid[kHistoryColumns]);
      at.log_keep_at_end = Lane::load_float(paid[kHistoryColumns + 1]);
      const Debts<Lane::F> d = row_debts<Lane>(u_.options, u_.history, now, at);
      const Lane::F columns[6] = {d.keep, d.beta1, d.beta2, d.moves, d.eps_share, d.mixed};
      for (int c = 0; c < 6; ++c) Lane::put_number(debts[c], columns[c]);
      for (int i = 0; i < Lane::kWidth && begin + i < count; ++i) {
        found[begin + i] = {debts[0][i], debts[1][i], debts[2][i],
                            debts[3][i], debts[4][i], debts[5][i]};
      }
    }
  }

  // The end of the gradients of a row, which begin at n; n if there are none.
  int64_t gradients_end(int64_t row, int64_t n) const {
    if (u_.values == nullptr) return n;
    int64_t end = n + 1;
    while (u_.ids != nullptr && end < u_.count && u_.ids[end] == row) ++end;
    return end;
  }

  void find_mean_square(Position& at, int64_t n) const {
    if (at.row < 0) return;
    const int64_t length = u_.length(at.row);
    const T sum = sum_of_squares(at.row, n, gradients_end(at.row, n), length);
    at.mean_square = A::div(sum, static_cast<T>(length));
  }

  void do_row(const Position& at, const Debt& owed, int64_t n) {
    const int64_t row = at.row, from = n, to = gradients_end(row, n);
    const Debt* const debt = at.owes ? &owed : nullptr;
    random_.row = row;
    const int64_t length = u_.length(row);
    const bool row_wise = is_row_wise(rule_);
    T old_root = 0, root = 0;  // of a row-wise second moment
    if (row_wise) {
      T& v = row_second(row);
      old_root = A::root(v);
      if (debt != nullptr) v = v * static_cast<T>(debt->beta2);
      if (from < to) {
        v = add_square<A>(scalars_, at.mean_square, v, is_adam(rule_));
        root = A::root(v);
      }
    }
    alignas(64) T param_buffer[kChunk], first_buffer[kChunk], second_buffer[kChunk];
    alignas(64) T gradient_buffer[kChunk];
    for (int64_t begin = 0; begin < length; begin += kChunk) {
      const int64_t count = length - begin < kChunk ? length - begin : kChunk;
      Chunk x;
      x.p = read_param(row, begin, count, param_buffer);
      if (u_.first != nullptr) {
        x.m = Columns<T, S>{}.read_into(first(row) + begin, count, first_buffer);
      }
      if (u_.second != nullptr && !row_wise) {
        x.v = Columns<T, S>{}.read_into(second(row) + begin, count, second_buffer);
      }
      if (from < to) x.g = gradient(from, to, begin, count, gradient_buffer);
      if (debt == nullptr) {
        update_columns<false, true>(x, Debt{}, old_root, root, count);
      } else if (from < to) {
        update_columns<true, true>(x, *debt, old_root, root, count);
      } else {
        update_columns<true, false>(x, *debt, old_root, root, count);
      }
      write_param(row, begin, count, x.p);
      if (x.m != nullptr) write_moment(RoundedArray::first, first(row), begin, count, x.m);
      if (x.v != nullptr) write_moment(RoundedArray::second, second(row), begin, count, x.v);
    }
  }

  T* read_param(int64_t row, int64_t begin, int64_t count, T* buffer) const {
    T* const p = Columns<T, P>{}.read_into(param(row) + begin, count, buffer);
    if constexpr (!Columns<T, P>::kDirect) {
      if (u_.compensation != nullptr) {
        const P* const rest = compensation(row) + begin;
        for (int64_t c = 0; c < count; ++c) p[c] += get<T>(rest + c);
      }
    }
    return p;
  }

  void write_param(int64_t row, int64_t begin, int64_t count, const T* p) const {
    if constexpr (!Columns<T, P>::kDirect) {
      P* const out = param(row) + begin;
      if (u_.rounding == Rounding::stochastic) {
        write_stochastically(p, begin, count, random_, RoundedArray::param, out);
        return;
      }
      write<T>(p, count, out);
      if (u_.compensation != nullptr) {
        P* const rest = compensation(row) + begin;
        for (int64_t c = 0; c < count; ++c) put(rest + c, p[c] - get<T>(out + c));
      }
    }
  }

  void write_moment(RoundedArray array, S* row, int64_t begin, int64_t count, const T* m) const {
    if constexpr (!Columns<T, S>::kDirect) {
      write_stochastically(m, begin, count, random_, array, row + begin);
    }
  }

  // The gradients [from, to) of a row, added up in this order.
  const T* gradient(int64_t from, int64_t to, int64_t begin, int64_t count, T* buffer) const {
    const auto source = [&](int64_t n) {
      const int64_t at = u_.order == nullptr ? n : u_.order[n];
      return static_cast<const P*>(u_.values) + at * u_.dim + begin;
    };
    if constexpr (Columns<T, P>::kDirect) {
      if (to == from + 1) return source(from);
    }
    read<T>(source(from), count, buffer);
    for (int64_t n = from + 1; n < to; ++n) {
      const P* const more = source(n);
      int64_t c = 0;
      for (; c + kLanes<T> <= count; c += kLanes<T>) {
        store<T>(buffer + c, load(buffer + c) + load_as<T>(more + c));
      }
      for (; c < count; ++c) buffer[c] += get<T>(more + c);
    }
    return buffer;
  }

  T sum_of_squares(int64_t row, int64_t from, int64_t to, int64_t length) const {
    alignas(64) T sums[kSumWidth] = {};
    alignas(64) T gradient_buffer[kChunk], param_buffer[kChunk];
    for (int64_t begin = 0; begin < length; begin += kChunk) {
      const int64_t count = length - begin < kChunk ? length - begin : kChunk;
      const T* const g = gradient(from, to, begin, count, gradient_buffer);
      // Without decay p isn't needed yet, and whoever waits for it here can't do so later.
      const T* const p = scalars_.l2 == T(0) ? g : read_param(row, begin, count, param_buffer);
      for_columns<T>(count, [&](auto kind, int64_t c) {
        const auto full =
            full_gradient<A>(scalars_, load_columns<T>(g + c, kind), load_columns<T>(p + c, kind));
        T* const sum = sums + c % kSumWidth;
        store_columns<T>(sum, load_columns<T>(sum, kind) + A::mul(full, full));
      });
    }
    for (int half = kSumWidth / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    }
    return sums[0];
  }

  // Debts and the step, in one pass.
  template <bool kPays, bool kSteps>
  void update_columns(const Chunk& x, const Debt& debt, T old_root, T root, int64_t count) const {
    // A copy, which no store to a row can change, so that it stays in registers.
    const ElementScalars<T> scalars = scalars_;
    if (rule_ == UpdateRule::sgd) {
      if (x.m == nullptr) {
        columns<kSteps, false, false>(x, count, [&](auto& p, auto& m, auto&, auto g) {
          if constexpr (kPays) pay_sgd<A, T>(debt, p, m);
          if constexpr (kSteps) step_sgd<A>(scalars, full_gradient<A>(scalars, g, p), p);
        });
      } else {
        columns<kSteps, true, false>(x, count, [&](auto& p, auto& m, auto&, auto g) {
          if constexpr (kPays) pay_sgd<A, T>(debt, p, m);
          if constexpr (kSteps) step_momentum<A>(scalars, full_gradient<A>(scalars, g, p), p, m);
        });
      }
    } else if (is_adagrad(rule_)) {
      if (x.v == nullptr) {
        columns<kSteps, false, false>(x, count, [&](auto& p, auto&, auto&, auto g) {
          const auto full = full_gradient<A>(scalars, g, p);
          step_adagrad<A>(scalars, full, splat_as<T>(root, g), p);
        });
      } else {
        columns<kSteps, false, true>(x, count, [&](auto& p, auto&, auto& v, auto g) {
          const auto full = full_gradient<A>(scalars, g, p);
          v = add_square<A>(scalars, A::mul(full, full), v, false);
          step_adagrad<A>(scalars, full, A::root(v), p);
        });
      }
    } else if (x.v == nullptr) {
      columns<kSteps, true, false>(x, count, [&](auto& p, auto& m, auto&, auto g) {
        if constexpr (kPays) pay_adam<A, T>(debt, splat_as<T>(old_root, g), p, m);
        if constexpr (kSteps) {
          const auto full = full_gradient<A>(scalars, g, p);
          step_adam<A>(scalars, full, splat_as<T>(root, g), p, m);
        }
      });
    } else {
      columns<kSteps, true, true>(x, count, [&](auto& p, auto& m, auto& v, auto g) {
        if constexpr (kPays) {
          pay_adam<A, T>(debt, debt.moves == 0.0 ? v : A::root(v), p, m);
          v = A::mul(v, static_cast<T>(debt.beta2));
        }
        if constexpr (kSteps) {
          const auto full = full_gradient<A>(scalars, g, p);
          v = add_square<A>(scalars, A::mul(full, full), v, true);
          step_adam<A>(scalars, full, A::root(v), p, m);
        }
      });
    }
  }

  // Calls f(p, m, v, g) for all columns.
  template <bool kSteps, bool kFirst, bool kSecond, class F>
  void columns(const Chunk& x, int64_t count, F&& f) const {
    for_columns<T>(count, [&](auto kind, int64_t c) {
      auto p = load_columns<T>(x.p + c, kind), m = kind, v = kind;
      if constexpr (kFirst) m = load_columns<T>(x.m + c, kind);
      if constexpr (kSecond) v = load_columns<T>(x.v + c, kind);
      auto g = kind;
      if constexpr (kSteps) g = load_columns<T>(x.g + c, kind);
      f(p, m, v, g);
      store_columns<T>(x.p + c, p);
      if constexpr (kFirst) store_columns<T>(x.m + c, m);
      if constexpr (kSecond) store_columns<T>(x.v + c, v);
    });
  }

  const RowUpdate& u_;
  ElementScalars<T> scalars_;
  Random random_;
  UpdateRule rule_;
};

}  // namespace

void update_rows(const RowUpdate& update, decltype(SampleKernels::philox) philox, int64_t begin,
                 int64_t end) {
  const bool half_state = update.state_dtype == DType::bf16;
  const auto run = [&]<class T, class P>(T, P) {
    if (half_state) {
      if constexpr (sizeof(T) == 4) RowKernel<T, P, BFloat16>(update, philox).run(begin, end);
    } else {
      RowKernel<T, P, T>(update, philox).run(begin, end);
    }
  };
  switch (update.param_dtype) {
    case DType::f64:
      return run(double{}, double{});
    case DType::f32:
      return run(float{}, float{});
    case DType::bf16:
      return run(float{}, BFloat16{});
    case DType::f16:
      return run(float{}, Float16{});
  }
}

}  // namespace ssc::SSC_ISA
