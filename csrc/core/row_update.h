// The rules of row-sparse optimizers: one step for a row that has a gradient, and what a row owes
// for the steps in which it had none. One source for every device, with the same bits: every product
// goes through the arithmetic A (mul, div, root), which rounds it by itself, and exponentials
// through portable_math.h.
//
// Symbols: p a weight, g its gradient, m the first moment or the momentum, v the second moment or
// the sum of squares (row-wise rules: one of each row), t the step, w = 1 − lr decay.
//
// Untouched rows. Row r was last brought up to date at step s. With "decay" it owes, at step u,
//     p <- p Π w_j,   m <- m Π β1_j,   v <- v Π β2_j          (products over s < j <= u)
// and with "replay" also the moves of the dense rule under gradients of zero. With Adam step j moves
// p by lr_j m_j / bc1_j / (sqrt(v_j / bc2_j) + eps), where m_j = m_s Π β1 and v_j = v_s Π β2, so that
//     p <- p Π w − m_s Σ_j n_j / (a_j x + eps),   x = sqrt(v_s),   a_j = sqrt(Π β2 / bc2_j),
//     n_j = lr_j / bc1_j Π β1, times the w after j.
// The sum is taken to be F / (x + eps G / F) with F = Σ n / a and G = Σ n / a²: equal to it without
// eps and to first order in it; the rest is below the relative variance of 1 / a_j under the weights
// n_j / a_j, about 2e-5 once bc2 changes slowly. With SGD, (p, m) <- N_u … N_{s+1} (p, m) for
// matrices N_j of 2 x 2. F, G and the products of matrices depend on s and u alone: a history keeps
// them for each s and adds step u to those of the last `horizon` steps. Terms of steps before them
// are below the rounding of a double, and what is left is a factor: Π w, or that of SGD's slow mode.
#pragma once

#include "csrc/core/philox.h"
#include "csrc/core/portable_math.h"

namespace ssc {

enum class UpdateRule : int { sgd = 0, adagrad, row_wise_adagrad, adam, row_wise_adam };

SSC_HD constexpr bool is_adagrad(UpdateRule rule) {
  return rule == UpdateRule::adagrad || rule == UpdateRule::row_wise_adagrad;
}
SSC_HD constexpr bool is_adam(UpdateRule rule) {
  return rule == UpdateRule::adam || rule == UpdateRule::row_wise_adam;
}
SSC_HD constexpr bool is_row_wise(UpdateRule rule) {
  return rule == UpdateRule::row_wise_adagrad || rule == UpdateRule::row_wise_adam;
}

// The options of a parameter group, as numbers.
struct UpdateOptions {
  UpdateRule rule;
  double lr;
  double beta1;  // SGD: momentum
  double beta2, eps;
  double l2;     // weight decay that is added to the gradient
  double decay;  // decoupled weight decay
  double lr_decay, dampening;
  double gradient_scale;  // −1 to maximise, and the scaler's
  bool nesterov, replay;
  bool plain_eps;  // eps beside sqrt(v), as SparseAdam has it, and not beside sqrt(v / bc2)
};

// --- the history ------------------------------------------------------------------------------

// For each step s of the last `capacity`, at s mod capacity: the logs of the products of w, β1 and
// β2 from the start to s, and what the rows of step s owe by now. Columns, each [capacity]:
enum HistoryColumn : int {
  kLogKeep = 0,  // of w; SGD: of the slow mode's factor
  kLogBeta1 = 1,
  kLogBeta2 = 2,     // SGD: m / p of the slow mode at s
  kMoves = 3,        // F; SGD: the four numbers of the product of matrices, row by row
  kMovesByRoot = 4,  // G
  kHistoryColumns = 7,
};

struct UpdateHistory {
  double* data;  // [kHistoryColumns, capacity], zeros at first
  int64_t capacity;
  int64_t horizon;  // below capacity

  SSC_MEMBER double* column(int index) const { return data + index * capacity; }
  // Steps are counted in float32; a GPU has no division of 64 bits.
  SSC_MEMBER double& at(int index, int64_t step) const {
    return column(index)[static_cast<uint32_t>(step) % static_cast<uint32_t>(capacity)];
  }
};

// exp(y) for y <= 0, to 1e-16 of 1; 0 below −60.
template <class L>
SSC_HD typename L::F decayed(typename L::F y) {
  return portable_expm1<L>(y) + 1.0;
}

// log(x), 0 <= x, with a floor in place of −inf, whose differences would be NaN.
SSC_HD double floored_log(double x) { return portable_log<ScalarLane>(x < 1e-300 ? 1e-300 : x); }

// --- the numbers of a step ----------------------------------------------------------------------

struct StepScalars {
  int64_t step;  // t, from 1
  double step_size;
  double root_scale;  // 1 / sqrt(bc2)
  double eps;
  double keep;            // w
  double fresh1, fresh2;  // what a gradient counts for in m and v
};

SSC_HD double bias_correction(double beta, int64_t step) {
  if (beta <= 0) return 1;
  return -portable_expm1<ScalarLane>(
      ScalarLane::mul(static_cast<double>(step), portable_log<ScalarLane>(beta)));
}

template <class A>
SSC_HD StepScalars step_scalars(const UpdateOptions& o, int64_t step) {
  StepScalars s = {step, o.lr, 1.0, o.eps, 1.0 - A::mul(o.lr, o.decay), 1.0, 1.0 - o.beta2};
  if (o.rule == UpdateRule::sgd) {
    s.fresh1 = step == 1 ? 1.0 : 1.0 - o.dampening;  // the first buffer is the gradient itself
  } else if (is_adagrad(o.rule)) {
    const double growth = 1.0 + A::mul(static_cast<double>(step - 1), o.lr_decay);
    s.step_size = A::div(o.lr, growth);
  } else {
    s.fresh1 = 1.0 - o.beta1;
    s.step_size = A::div(o.lr, bias_correction(o.beta1, step));
    s.root_scale = A::div(1.0, A::root(bias_correction(o.beta2, step)));
    if (o.plain_eps) s.eps = A::mul(o.eps, s.root_scale);
  }
  return s;
}

// A step of SGD without gradient: m' = mm m + mp p, p' = pp p + pm m.
struct SgdMatrix {
  double pp, pm, mp, mm;
};

template <class A>
SSC_HD SgdMatrix sgd_matrix(const UpdateOptions& o, const StepScalars& s) {
  const double mp = A::mul(s.fresh1, o.l2);
  const double direct = o.nesterov ? o.l2 : 0.0, through = o.nesterov ? o.beta1 : 1.0;
  return {1.0 - A::mul(o.lr, direct + A::mul(through, mp)), -A::mul(o.lr, A::mul(through, o.beta1)),
          mp, o.beta1};
}

// The share of the history that step `s.step` writes of its own: the products up to it.
template <class A>
SSC_HD void open_step(const UpdateOptions& o, const StepScalars& s, const UpdateHistory& h) {
  const int64_t t = s.step;
  const double log_beta1 = floored_log(o.beta1);
  h.at(kLogBeta1, t) = h.at(kLogBeta1, t - 1) + log_beta1;
  if (o.rule == UpdateRule::sgd) {
    const SgdMatrix n = sgd_matrix<A>(o, s);
    const double ratio = h.at(kLogBeta2, t - 1);
    // The slow of two modes whose factors have the product β1: never below its root. Where both
    // turn together there is no slow one, and the root is their size.
    const double least = A::root(o.beta1);
    const double free = n.pp + A::mul(n.pm, ratio);
    const double factor = free > least ? free : least;
    h.at(kLogKeep, t) = h.at(kLogKeep, t - 1) + floored_log(factor);
    h.at(kLogBeta2, t) = A::div(n.mp + A::mul(n.mm, ratio), factor);
    h.at(kMoves, t) = 1.0;
    h.at(kMoves + 1, t) = 0.0;
    h.at(kMoves + 2, t) = 0.0;
    h.at(kMoves + 3, t) = 1.0;
    return;
  }
  h.at(kLogKeep, t) = h.at(kLogKeep, t - 1) + floored_log(s.keep);
  h.at(kLogBeta2, t) = h.at(kLogBeta2, t - 1) + floored_log(o.beta2);
  h.at(kMoves, t) = 0.0;
  h.at(kMovesByRoot, t) = 0.0;
}

// The share of step t in the debts of the rows of a step before it.
struct StepMove {
  double log_beta1, log_beta2;  // at t
  double size;                  // lr / bc1
  double root_scale;            // 1 / sqrt(bc2)
  double keep;                  // w
  SgdMatrix matrix;
};

template <class A>
SSC_HD StepMove step_move(const UpdateOptions& o, const StepScalars& s, const UpdateHistory& h) {
  StepMove move = {
      h.at(kLogBeta1, s.step), h.at(kLogBeta2, s.step), s.step_size, s.root_scale, s.keep, {}};
  if (o.rule == UpdateRule::sgd) move.matrix = sgd_matrix<A>(o, s);
  return move;
}

// F and G with step t, from the logs of the rows' own step.
template <class L>
SSC_HD void add_moves(const StepMove& move, typename L::F log_beta1, typename L::F log_beta2,
                      typename L::F& moves, typename L::F& by_root) {
  using F = typename L::F;
  const F n = L::mul(L::splat(move.size), decayed<L>(L::splat(move.log_beta1) - log_beta1));
  const F log_root = L::mul(L::splat(move.log_beta2) - log_beta2, L::splat(0.5));
  const F inverse = L::splat(1.0) / L::mul(decayed<L>(log_root), L::splat(move.root_scale));
  const F moved = L::mul(n, inverse);
  const F keep = L::splat(move.keep);
  moves = L::mul_add(keep, moves, moved);
  by_root = L::mul_add(keep, by_root, L::mul(moved, inverse));
}

// product <- matrix product
template <class L>
SSC_HD void multiply_left(const SgdMatrix& n, typename L::F& pp, typename L::F& pm,
                          typename L::F& mp, typename L::F& mm) {
  using F = typename L::F;
  const F new_pp = L::mul_add(L::splat(n.pp), pp, L::mul(L::splat(n.pm), mp));
  const F new_pm = L::mul_add(L::splat(n.pp), pm, L::mul(L::splat(n.pm), mm));
  const F new_mp = L::mul_add(L::splat(n.mp), pp, L::mul(L::splat(n.mm), mp));
  const F new_mm = L::mul_add(L::splat(n.mp), pm, L::mul(L::splat(n.mm), mm));
  pp = new_pp, pm = new_pm, mp = new_mp, mm = new_mm;
}

// --- the debt of a row ----------------------------------------------------------------------------

// p <- keep p − moves m / (x + eps_share), m <- beta1 m, v <- beta2 v; with SGD
// p <- keep p − moves m, m <- beta1 m + mixed p.
template <class F>
struct Debts {
  F keep, beta1, beta2, moves, eps_share, mixed;
};
using Debt = Debts<double>;

// The history at the steps up to which rows have paid: one row, or a vector of them.
template <class F>
struct PaidSteps {
  F age;  // steps since
  F column[kHistoryColumns];
  F log_keep_at_end;  // kLogKeep at the end of the horizon, or at `age` = 0 if that is nearer
};

SSC_HD PaidSteps<double> paid_steps(const UpdateHistory& h, int64_t paid, int64_t now) {
  PaidSteps<double> columns;
  columns.age = static_cast<double>(now - paid);
  for (int i = 0; i < kHistoryColumns; ++i) columns.column[i] = h.at(i, paid);
  columns.log_keep_at_end = h.at(kLogKeep, now - paid <= h.horizon ? now : paid + h.horizon);
  return columns;
}

// The debts of rows that have paid up to some steps before `now`.
template <class L>
SSC_HD Debts<typename L::F> row_debts(const UpdateOptions& o, const UpdateHistory& h, int64_t now,
                                      const PaidSteps<typename L::F>& paid) {
  using F = typename L::F;
  const F zero = L::splat(0.0), one = L::splat(1.0);
  const F log_keep = L::splat(h.at(kLogKeep, now));
  const auto since = [&](int column) {
    return decayed<L>(L::splat(h.at(column, now)) - paid.column[column]);
  };
  const bool sgd = o.rule == UpdateRule::sgd;
  if (!o.replay) {
    return {since(kLogKeep), since(kLogBeta1), sgd ? one : since(kLogBeta2), zero, zero, zero};
  }
  // 1 within the horizon.
  const F later = decayed<L>(log_keep - paid.log_keep_at_end);
  const F first = paid.column[kMoves], second = paid.column[kMovesByRoot];
  if (!sgd) {
    const F share = L::mul(L::splat(o.eps), second / first);
    return {since(kLogKeep),
            since(kLogBeta1),
            since(kLogBeta2),
            L::mul(later, first),
            first > zero ? share : zero,
            zero};
  }
  // Beyond it only the slow mode is left: p shrinks by its factor, and m is in a fixed ratio to it.
  const auto near = paid.age <= L::splat(static_cast<double>(h.horizon));
  const F ratio = L::splat(h.at(kLogBeta2, now));
  const F keep = L::mul(later, first), moves = L::mul(later, second);
  const F minus = zero - moves;
  return {keep, near ? paid.column[kMoves + 3] : L::mul(ratio, moves), one, minus,
          zero, near ? paid.column[kMoves + 2] : L::mul(ratio, keep)};
}

// --- elements: V is a number or a vector of T -------------------------------------------------------

// The numbers of a step and of a debt in the type of the arithmetic.
template <class T>
struct ElementScalars {
  T gradient_scale, l2, keep, step_size, root_scale, eps;
  T beta1, beta2, fresh1, fresh2;
  bool nesterov;
};

template <class T>
SSC_HD ElementScalars<T> element_scalars(const UpdateOptions& o, const StepScalars& s) {
  return {static_cast<T>(o.gradient_scale),
          static_cast<T>(o.l2),
          static_cast<T>(s.keep),
          static_cast<T>(s.step_size),
          static_cast<T>(s.root_scale),
          static_cast<T>(s.eps),
          static_cast<T>(o.beta1),
          static_cast<T>(o.beta2),
          static_cast<T>(s.fresh1),
          static_cast<T>(s.fresh2),
          o.nesterov};
}

// SGD without momentum has no m.
template <class A, class T, class V, class F>
SSC_HD void pay_sgd(const Debts<F>& d, V& p, V& m) {
  const V old = p;
  p = A::mul(p, static_cast<T>(d.keep)) - A::mul(m, static_cast<T>(d.moves));
  m = A::mul(m, static_cast<T>(d.beta1)) + A::mul(old, static_cast<T>(d.mixed));
}

// x: sqrt(v).
template <class A, class T, class V, class F>
SSC_HD void pay_adam(const Debts<F>& d, V x, V& p, V& m) {
  const T moves = static_cast<T>(d.moves);
  p = A::mul(p, static_cast<T>(d.keep));
  if (moves != T(0)) p = p - A::div(A::mul(m, moves), x + static_cast<T>(d.eps_share));
  m = A::mul(m, static_cast<T>(d.beta1));
}

// The gradient with the scale and the decay that is added to it.
template <class A, class T, class V>
SSC_HD V full_gradient(const ElementScalars<T>& s, V g, V p) {
  g = A::mul(g, s.gradient_scale);
  return s.l2 != T(0) ? g + A::mul(p, s.l2) : g;
}

template <class A, class T, class V>
SSC_HD void step_sgd(const ElementScalars<T>& s, V g, V& p) {
  p = p - A::mul(g, s.step_size);
}

template <class A, class T, class V>
SSC_HD void step_momentum(const ElementScalars<T>& s, V g, V& p, V& m) {
  m = A::mul(m, s.beta1) + A::mul(g, s.fresh1);
  p = p - A::mul(s.nesterov ? g + A::mul(m, s.beta1) : m, s.step_size);
}

// x: sqrt(v), v with this step's square.
template <class A, class T, class V>
SSC_HD void step_adagrad(const ElementScalars<T>& s, V g, V x, V& p) {
  p = p - A::div(A::mul(g, s.step_size), x + s.eps);
}

template <class A, class T, class V>
SSC_HD void step_adam(const ElementScalars<T>& s, V g, V x, V& p, V& m) {
  p = A::mul(p, s.keep);
  m = m + A::mul(g - m, s.fresh1);
  p = p - A::div(A::mul(m, s.step_size), A::mul(x, s.root_scale) + s.eps);
}

template <class A, class T, class V>
SSC_HD V add_square(const ElementScalars<T>& s, V square, V v, bool adam) {
  return adam ? A::mul(v, s.beta2) + A::mul(square, s.fresh2) : v + square;
}

// --- sums over a row --------------------------------------------------------------------------------

// A sum over a row has kSumWidth partial ones: element c belongs to c mod kSumWidth. These are added
// up in halves: i and i + 64, then i and i + 32, and so on.
constexpr int kSumWidth = 128;

// --- rounding to 16 bits ----------------------------------------------------------------------------

// How numbers that were computed in 32 bits become 16: `kahan` keeps what is lost beside them.
enum class Rounding : int { nearest = 0, stochastic, kahan };

// Random bits of the elements of row r at step t, for each array of numbers with 16 bits: element c
// has the bits 16 (c mod 4) and up of draw c / 4 of this key.
enum class RoundedArray : int { param = 0, first, second };

SSC_HD PhiloxKey rounding_key(uint64_t seed, int64_t step, int64_t row, RoundedArray array) {
  const uint64_t offset =
      (static_cast<uint64_t>(step) << 24) + (static_cast<uint64_t>(static_cast<int>(array)) << 22);
  return {seed, offset, static_cast<uint64_t>(row)};
}

// A float to the next bf16 towards zero or away from it, away with the probability of the distance:
// its bits, in the low half. `random` is below 2^16. U: uint32_t or a vector of them.
template <class U>
SSC_HD U round_to_bf16(U bits, U random) {
  const U size = bits & 0x7fffffffu;
  const U rounded = (bits + random) >> 16;
  const U kept = bits >> 16;  // inf
  return size > 0x7f800000u ? (kept | 0x40u) : (size == 0x7f800000u ? kept : rounded);
}

// The same for fp16, whose numbers below 2^-14 lie 2^-24 apart.
SSC_HD uint32_t round_to_fp16(uint32_t bits, uint32_t random) {
  const uint32_t sign = (bits >> 16) & 0x8000u, size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return sign | 0x7e00u;
  if (size >= 0x47800000u) return sign | 0x7c00u;  // 2^16 and more
  if (size >= 0x38800000u) return sign | ((size + (random >> 3) - 0x38000000u) >> 13);
  const uint32_t exponent = size >> 23;
  if (exponent < 87) return sign;  // below 2^-40: less than one chance in 2^16
  const uint64_t mantissa = (size & 0x7fffffu) | 0x800000u;
  const uint64_t fixed = (mantissa << 16) >> (126 - exponent);  // in units of 2^-40
  return sign | static_cast<uint32_t>((fixed + random) >> 16);
}

}  // namespace ssc
