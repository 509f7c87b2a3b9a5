// The targets' products and gradients (csrc/cpu/loss/targets.h) against loops in double.
#include <random>
#include <set>

#include "csrc/cpu/loss/targets.h"
#include "tests/cpp/check.h"
#include "tests/cpp/loss_problem.h"

namespace ssc::test {
namespace {

constexpr int64_t kTargets = 3;

// Targets of a RandomProblem's rows, some of which are none, and the classes that they are.
struct TargetCase {
  explicit TargetCase(const Options& options) : random(options) {
    std::mt19937_64 bits(options.seed);
    const auto pick = [&](int64_t n) {
      return static_cast<int64_t>(bits() % static_cast<uint64_t>(n));
    };
    std::set<int64_t> found = {options.classes - 1};
    for (int64_t j = 0; j < options.batch * kTargets; ++j) {
      target.push_back(pick(4) == 0 ? -1 : pick(options.classes));
      if (target.back() >= 0) found.insert(target.back());
      coefficient.push_back(static_cast<double>(pick(17)) / 8 - 1);
      bias_coefficient.push_back(static_cast<double>(pick(17)) / 8 - 1);
    }
    classes.assign(found.begin(), found.end());
  }

  TargetProblem problem() const {
    const LossProblem p = random.problem();
    return {p.input, p.weight, target.data(), p.batch, kTargets, p.dim, p.classes};
  }

  RandomProblem random;
  std::vector<int64_t> target, classes;
  std::vector<double> coefficient, bias_coefficient;
};

template <class T>
struct Output {
  explicit Output(const TargetCase& c)
      : input(static_cast<size_t>(c.random.options.batch * c.random.options.dim), T(1)),
        weight(c.classes.size() * static_cast<size_t>(c.random.options.dim), T(2)),
        bias(c.classes.size(), T(3)) {}
  bool operator==(const Output&) const = default;
  std::vector<T> input, weight, bias;
};

template <class T>
Output<T> add(const TargetCase& c, bool with_bias, const ParallelFor& parallel_for) {
  Output<T> out(c);
  const std::vector<T> by_product(c.coefficient.begin(), c.coefficient.end());
  const std::vector<T> by_bias(c.bias_coefficient.begin(), c.bias_coefficient.end());
  const TargetGradients<T> gradients = {by_product.data(), with_bias ? by_bias.data() : nullptr,
                                        c.classes.data(),  static_cast<int64_t>(c.classes.size()),
                                        out.input.data(),  out.weight.data(),
                                        out.bias.data()};
  Workspace workspace;
  CHECK(add_target_grads<T>(c.problem(), gradients, workspace, active_isa(), parallel_for));
  return out;
}

template <class T>
void check(const Options& o) {
  const Note note(o.text());
  const TargetCase c(o);
  const double close = sizeof(T) == 8 ? 1e-12 : 1e-4;
  std::vector<T> products(c.target.size());
  target_products<T>(c.problem(), products.data(), active_isa(), threads<3>());

  Sums input, weight, bias;
  input.resize(o.batch * o.dim);
  weight.resize(static_cast<int64_t>(c.classes.size()) * o.dim);
  bias.resize(static_cast<int64_t>(c.classes.size()));
  for (size_t j = 0; j < c.target.size(); ++j) {
    const int64_t id = c.target[j], row = static_cast<int64_t>(j) / kTargets;
    double product = 0, size = 0;
    const int64_t n = std::lower_bound(c.classes.begin(), c.classes.end(), id) - c.classes.begin();
    for (int64_t d = 0; id >= 0 && d < o.dim; ++d) {
      const double h = c.random.input.at(row, d), w = c.random.weight.at(id, d);
      product += h * w;
      size += std::abs(h * w);
      input.add(row * o.dim + d, c.coefficient[j] * w);
      weight.add(n * o.dim + d, c.coefficient[j] * h);
    }
    CHECK_CLOSE(products[j], product, close * size, 0);
    if (id >= 0) bias.add(n, c.bias_coefficient[j]);
  }
  const Output<T> got = add<T>(c, true, threads<2>());
  const auto check_sums = [&](const std::vector<T>& values, const Sums& sums, double start) {
    for (size_t i = 0; i < values.size(); ++i)
      CHECK_CLOSE(values[i], start + sums.value[i], close * (sums.size[i] + start), 0);
  };
  check_sums(got.input, input, 1);
  check_sums(got.weight, weight, 2);
  check_sums(got.bias, bias, 3);
  CHECK(got == add<T>(c, true, serial()));  // whatever the number of threads
  CHECK(add<T>(c, false, threads<3>()).bias == Output<T>(c).bias);
}

}  // namespace

TEST(every_shape_and_dtype) {
  check_each(shapes_and_dtypes(),
             [](const Options& o) { o.input == DType::f64 ? check<double>(o) : check<float>(o); });
}

TEST(a_class_without_a_row_is_refused) {
  const Options o = {.batch = 4, .dim = 9, .classes = 20, .samples = 5};
  TargetCase c(o);
  c.target[0] = o.classes - 1;
  c.classes.pop_back();
  Output<float> out(c), same(c);
  const std::vector<float> by_product(c.target.size(), 1);
  const TargetGradients<float> gradients = {
      by_product.data(), nullptr,
      c.classes.data(),  static_cast<int64_t>(c.classes.size()),
      out.input.data(),  out.weight.data(),
      out.bias.data()};
  Workspace workspace;
  CHECK(!add_target_grads<float>(c.problem(), gradients, workspace, active_isa(), serial()));
  CHECK(out == same);
}

}  // namespace ssc::test
