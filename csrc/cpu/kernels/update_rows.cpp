// Steps of optimizers for single rows. Compiled once per instruction set, with -ffp-contract=off:
// the same bits on every CPU and on CUDA (csrc/core/row_update.h).
#include "csrc/cpu/kernels/arithmetic.h"
#include "csrc/cpu/kernels/rounded_storage.h"
#include "csrc/cpu/update/table.h"

namespace ssc::SSC_ISA {
namespace {

using A = Arithmetic;

constexpr int64_t kAhead = 6;  // rows between a prefetch and its use

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
    for (int64_t n = begin; n < begin + kAhead && n < end; ++n) prefetch(n);
    for (int64_t n = begin; n < end; ++n) {
      if (n + kAhead < end) prefetch(n + kAhead);
      const int64_t row = row_of(n);
      if (row < 0 || row >= u_.rows) continue;
      if (u_.values != nullptr) {
        step(n);
      } else {
        settle(n);
      }
    }
  }

 private:
  int64_t row_of(int64_t n) const { return u_.ids == nullptr ? n : u_.ids[n]; }

  void prefetch(int64_t n) const {
    const int64_t row = row_of(n);
    if (row < 0 || row >= u_.rows) return;
    const auto lines = [](const void* from, int64_t bytes) {
      const char* const begin = static_cast<const char*>(from);
      for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(begin + b, 1);
    };
    const int64_t dim = u_.dim;
    const int64_t size_p = dim * static_cast<int64_t>(sizeof(P));
    const int64_t size_s = dim * static_cast<int64_t>(sizeof(S));
    lines(param(row), size_p);
    if (u_.first != nullptr) lines(first(row), size_s);
    if (u_.second != nullptr && !is_row_wise(rule_)) lines(second(row), size_s);
    if (u_.second != nullptr && is_row_wise(rule_)) lines(&row_second(row), 1);
    if (u_.compensation != nullptr) lines(compensation(row), size_p);
    if (u_.last_step != nullptr) lines(u_.last_step + row, 1);
  }

  P* param(int64_t row) const { return static_cast<P*>(u_.param) + row * u_.stride; }
  P* compensation(int64_t row) const { return static_cast<P*>(u_.compensation) + row * u_.dim; }
  S* first(int64_t row) const { return static_cast<S*>(u_.first) + row * u_.dim; }
  S* second(int64_t row) const { return static_cast<S*>(u_.second) + row * u_.dim; }
  T& row_second(int64_t row) const { return static_cast<T*>(u_.second)[row]; }

  // The gradients of one row are at positions [n, end of those with its id); the first does it.
  void step(int64_t n) {
    int64_t last = n + 1;
    if (u_.ids != nullptr) {
      if (n > 0 && u_.ids[n - 1] == u_.ids[n]) return;
      while (last < u_.count && u_.ids[last] == u_.ids[n]) ++last;
    }
    const int64_t row = row_of(n), now = u_.step.step;
    Debt debt;
    bool owes = false;
    if (u_.last_step != nullptr) {
      const int64_t paid = u_.last_step[row];
      owes = paid < now - 1;
      if (owes) debt = row_debt<A>(u_.options, u_.history, paid, now - 1);
      u_.last_step[row] = static_cast<int32_t>(now);
    }
    do_row(row, n, last, owes ? &debt : nullptr);
  }

  void settle(int64_t n) {
    const int64_t row = row_of(n), now = u_.step.step;
    // Whoever comes first pays, if an id is there twice.
    const int64_t paid =
        __atomic_exchange_n(u_.last_step + row, static_cast<int32_t>(now), __ATOMIC_RELAXED);
    if (paid >= now) return;
    const Debt debt = row_debt<A>(u_.options, u_.history, paid, now);
    do_row(row, 0, 0, &debt);
  }

  // Sources [from, to) of the gradient, none to pay only.
  void do_row(int64_t row, int64_t from, int64_t to, const Debt* debt) {
    random_.row = row;
    const int64_t length = u_.length(row);
    const bool row_wise = is_row_wise(rule_);
    T old_root = 0, root = 0;  // of a row-wise second moment
    if (row_wise) {
      T& v = row_second(row);
      old_root = A::root(v);
      if (debt != nullptr) v = v * static_cast<T>(debt->beta2);
      if (from < to) {
        const T mean = A::div(sum_of_squares(row, from, to, length), static_cast<T>(length));
        v = add_square<A>(scalars_, mean, v, is_adam(rule_));
        root = A::root(v);
      }
    }
    alignas(64) T param_buffer[kChunk], first_buffer[kChunk], second_buffer[kChunk];
    alignas(64) T gradient_buffer[kChunk];
    for (int64_t begin = 0; begin < length; begin += kChunk) {
      const int64_t count = length - begin < kChunk ? length - begin : kChunk;
      T* const p = read_param(row, begin, count, param_buffer);
      T* const m = u_.first == nullptr ? nullptr
                                       : Columns<T, S>{}.read_into(first(row) + begin, count,
                                                                   first_buffer);
      T* const v = u_.second == nullptr || row_wise
                       ? nullptr
                       : Columns<T, S>{}.read_into(second(row) + begin, count, second_buffer);
      if (debt != nullptr) pay(*debt, old_root, count, p, m, v);
      if (from < to) {
        const T* const g = gradient(from, to, begin, count, gradient_buffer);
        take_step(g, root, count, p, m, v);
      }
      write_param(row, begin, count, p);
      if (m != nullptr) write_moment(RoundedArray::first, first(row), begin, count, m);
      if (v != nullptr) write_moment(RoundedArray::second, second(row), begin, count, v);
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

  T sum_of_squares(int64_t row, int64_t from, int64_t to, int64_t length) {
    alignas(64) T sums[kSumWidth] = {};
    alignas(64) T gradient_buffer[kChunk], param_buffer[kChunk];
    for (int64_t begin = 0; begin < length; begin += kChunk) {
      const int64_t count = length - begin < kChunk ? length - begin : kChunk;
      const T* const g = gradient(from, to, begin, count, gradient_buffer);
      const T* const p = read_param(row, begin, count, param_buffer);
      for_columns<T>(count, [&](auto kind, int64_t c) {
        const auto full = full_gradient<A>(scalars_, load_columns<T>(g + c, kind),
                                           load_columns<T>(p + c, kind));
        T* const sum = sums + c % kSumWidth;
        store_columns<T>(sum, load_columns<T>(sum, kind) + A::mul(full, full));
      });
    }
    constexpr int kFours = kSumWidth / 4;
    T fours[kFours];
    for (int i = 0; i < kFours; ++i) {
      fours[i] = (sums[4 * i] + sums[4 * i + 1]) + (sums[4 * i + 2] + sums[4 * i + 3]);
    }
    for (int half = kFours / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) fours[i] += fours[i + half];
    }
    return fours[0];
  }

  void pay(const Debt& debt, T old_root, int64_t count, T* p, T* m, T* v) const {
    for_columns<T>(count, [&](auto kind, int64_t c) {
      auto weight = load_columns<T>(p + c, kind);
      auto moment = m == nullptr ? kind : load_columns<T>(m + c, kind);
      if (rule_ == UpdateRule::sgd) {
        pay_sgd<A, T>(debt, weight, moment);
      } else if (v == nullptr) {
        pay_adam<A, T>(debt, splat_as<T>(old_root, kind), weight, moment);
      } else {
        const auto square = load_columns<T>(v + c, kind);
        pay_adam<A, T>(debt, A::root(square), weight, moment);
        store_columns<T>(v + c, A::mul(square, static_cast<T>(debt.beta2)));
      }
      store_columns<T>(p + c, weight);
      if (m != nullptr) store_columns<T>(m + c, moment);
    });
  }

  void take_step(const T* g, T root, int64_t count, T* p, T* m, T* v) const {
    const ElementScalars<T> s = scalars_;
    switch (rule_) {
      case UpdateRule::sgd:
        return for_columns<T>(count, [&](auto kind, int64_t c) {
          auto weight = load_columns<T>(p + c, kind);
          const auto full = full_gradient<A>(s, load_columns<T>(g + c, kind), weight);
          if (m == nullptr) {
            step_sgd<A>(s, full, weight);
          } else {
            auto moment = load_columns<T>(m + c, kind);
            step_momentum<A>(s, full, weight, moment);
            store_columns<T>(m + c, moment);
          }
          store_columns<T>(p + c, weight);
        });
      case UpdateRule::adagrad:
      case UpdateRule::row_wise_adagrad:
        return for_columns<T>(count, [&](auto kind, int64_t c) {
          auto weight = load_columns<T>(p + c, kind);
          const auto full = full_gradient<A>(s, load_columns<T>(g + c, kind), weight);
          auto x = splat_as<T>(root, kind);
          if (v != nullptr) {
            const auto sum =
                add_square<A>(s, A::mul(full, full), load_columns<T>(v + c, kind), false);
            store_columns<T>(v + c, sum);
            x = A::root(sum);
          }
          step_adagrad<A>(s, full, x, weight);
          store_columns<T>(p + c, weight);
        });
      case UpdateRule::adam:
      case UpdateRule::row_wise_adam:
        return for_columns<T>(count, [&](auto kind, int64_t c) {
          auto weight = load_columns<T>(p + c, kind), moment = load_columns<T>(m + c, kind);
          const auto full = full_gradient<A>(s, load_columns<T>(g + c, kind), weight);
          auto x = splat_as<T>(root, kind);
          if (v != nullptr) {
            const auto square =
                add_square<A>(s, A::mul(full, full), load_columns<T>(v + c, kind), true);
            store_columns<T>(v + c, square);
            x = A::root(square);
          }
          step_adam<A>(s, full, x, weight, moment);
          store_columns<T>(p + c, weight);
          store_columns<T>(m + c, moment);
        });
    }
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
