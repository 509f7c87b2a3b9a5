// Row updates (csrc/cpu/update/update.h): the same bits for every instruction set and number of
// threads, nothing written beside the rows that are meant, and all memory of its exact size, which
// AddressSanitizer watches. What the rules compute is tested in Python (tests/optim).
#include <cstring>
#include <random>

#include "csrc/cpu/update/update.h"
#include "tests/cpp/check.h"
#include "tests/cpp/loss_problem.h"

namespace ssc::test {
namespace {

constexpr int64_t kSteps = 64;
constexpr UpdateRule kRules[] = {UpdateRule::sgd, UpdateRule::adagrad, UpdateRule::row_wise_adagrad,
                                 UpdateRule::adam, UpdateRule::row_wise_adam};

struct Setting {
  UpdateRule rule;
  DType param, state;
  Rounding rounding;
  bool replay;
  int64_t rows, dim;

  std::string text() const {
    return "rule " + std::to_string(static_cast<int>(rule)) + " param " +
           std::to_string(static_cast<int>(param)) + " state " +
           std::to_string(static_cast<int>(state)) + " rounding " +
           std::to_string(static_cast<int>(rounding)) + " replay " + std::to_string(replay) +
           " rows " + std::to_string(rows) + " dim " + std::to_string(dim);
  }
};

// A parameter with all its states, and some steps on it.
struct Training {
  explicit Training(const Setting& s)
      : setting(s),
        param(bytes(s.rows * s.dim, s.param)),
        first(bytes(s.rows * s.dim, s.state)),
        second(is_row_wise(s.rule) ? bytes(s.rows, wide(s)) : bytes(s.rows * s.dim, s.state)),
        compensation(bytes(s.rounding == Rounding::kahan ? s.rows * s.dim : 0, s.param)),
        last_step(static_cast<size_t>(s.rows)),
        history(static_cast<size_t>(kHistoryColumns * kSteps)) {
    // Bits of small numbers in each dtype: the exponent's top is that of 1.
    for (size_t i = 0; i < param.size(); ++i) param[i] = small(i);
    if (s.rule == UpdateRule::sgd) {
      history[3 * kSteps] = 1;
      history[6 * kSteps] = 1;
    }
  }

  static std::vector<char> bytes(int64_t count, DType dtype) {
    return std::vector<char>(static_cast<size_t>(count * element_size(dtype)));
  }
  static DType wide(const Setting& s) { return s.param == DType::f64 ? DType::f64 : DType::f32; }

  char small(size_t i) const {
    const auto size = static_cast<size_t>(element_size(setting.param));
    if (i % size == size - 1) return setting.param == DType::f64 ? 0x3f : 0x3c;
    return static_cast<char>(i * 37 % 97);
  }

  void step(uint64_t seed, Isa isa, const ParallelFor& parallel_for, bool settle) {
    std::mt19937 random(static_cast<unsigned>(seed));
    const auto count = static_cast<int64_t>(random() % 9);
    std::vector<int64_t> ids(static_cast<size_t>(count)), order(ids.size());
    for (int64_t& id : ids) {
      id = static_cast<int64_t>(random() % static_cast<unsigned>(setting.rows + 2)) - 1;
    }
    if (!settle) std::sort(ids.begin(), ids.end());
    for (int64_t n = 0; n < count; ++n) order[static_cast<size_t>(n)] = count - 1 - n;
    std::vector<char> values = bytes(count * setting.dim, setting.param);
    for (size_t i = 0; i < values.size(); ++i) values[i] = small(i + seed);

    RowUpdate u{};
    u.param_dtype = setting.param;
    u.state_dtype = setting.state;
    u.param = param.data();
    u.rows = setting.rows;
    u.stride = u.dim = setting.dim;
    u.total = setting.rows * setting.dim;
    u.values = settle ? nullptr : values.data();
    u.ids = ids.data();
    u.order = settle ? nullptr : order.data();
    u.count = count;
    u.first = is_adagrad(setting.rule) ? nullptr : first.data();
    u.second = setting.rule == UpdateRule::sgd ? nullptr : second.data();
    u.compensation = setting.rounding == Rounding::kahan ? compensation.data() : nullptr;
    if (!is_adagrad(setting.rule)) {
      u.last_step = last_step.data();
      u.history = {history.data(), kSteps, 7};
    }
    u.options.rule = setting.rule;
    u.options.lr = 0.1;
    u.options.beta1 = 0.9;
    u.options.beta2 = 0.99;
    u.options.eps = 1e-8;
    u.options.l2 = is_adam(setting.rule) ? 0.0 : 0.01;
    u.options.decay = is_adam(setting.rule) ? 0.01 : 0.0;
    u.options.gradient_scale = 1.0;
    u.options.replay = setting.replay;
    u.rounding = setting.rounding;
    u.seed = 11;
    if (!settle) {
      update_rows(u, &steps, isa, parallel_for);
    } else if (u.last_step != nullptr) {
      settle_rows(u, &steps, isa, parallel_for);
    }
  }

  Setting setting;
  std::vector<char> param, first, second, compensation;
  std::vector<int32_t> last_step;
  std::vector<double> history;
  float steps = 0;
};

bool same(const Training& a, const Training& b) {
  return a.param == b.param && a.first == b.first && a.second == b.second &&
         a.compensation == b.compensation && a.last_step == b.last_step && a.history == b.history;
}

void check(const Setting& s) {
  const Note note(s.text());
  Training one(s), other(s);
  for (uint64_t step = 0; step < 12; ++step) {
    const bool settle = step % 4 == 3;
    one.step(step, active_isa(), serial(), settle);
    // Two threads would race for who settles a repeated id first; the result is one of them.
    other.step(step, Isa::scalar, settle ? serial() : threads<3>(), settle);
  }
  CHECK(same(one, other));
}

}  // namespace

TEST(every_rule_dtype_and_shape) {
  struct Storage {
    DType param, state;
    Rounding rounding;
  };
  const Storage storages[] = {
      {DType::f32, DType::f32, Rounding::nearest},     {DType::f64, DType::f64, Rounding::nearest},
      {DType::bf16, DType::f32, Rounding::stochastic}, {DType::bf16, DType::bf16, Rounding::kahan},
      {DType::f16, DType::f32, Rounding::stochastic},  {DType::f16, DType::f32, Rounding::nearest},
      {DType::f32, DType::bf16, Rounding::nearest},
  };
  for (const UpdateRule rule : kRules) {
    for (const Storage& x : storages) {
      for (const int64_t dim : {1, 3, 16, 33, 130, 600}) {
        for (const bool replay : {false, true}) {
          check({rule, x.param, x.state, x.rounding, replay, dim == 3 ? 1 : 7, dim});
        }
      }
    }
  }
}

TEST(a_row_with_inf_or_nan_is_found) {
  std::vector<float> values(5 * 37, 1.0f);
  const auto find = [&] {
    return first_nonfinite_row(values.data(), DType::f32, 5, 37, active_isa(), threads<2>());
  };
  CHECK(find() == -1);
  values[4 * 37 + 36] = INFINITY;
  CHECK(find() == 4);
  values[2 * 37] = NAN;
  CHECK(find() == 2);
  CHECK(first_nonfinite_row(values.data(), DType::f32, 0, 37, active_isa(), serial()) == -1);
}

}  // namespace ssc::test
