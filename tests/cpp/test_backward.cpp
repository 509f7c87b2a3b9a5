// loss_and_grads against loops in double: gradients of input, weight rows and bias, dense and
// sparse.
#include <type_traits>

#include "tests/cpp/check.h"
#include "tests/cpp/loss_problem.h"

namespace ssc::test {
namespace {

// The results of loss_and_grads.
struct Output {
  Output(const RandomProblem& random, int64_t weight_rows)
      : input(random.options.batch, random.options.dim, random.options.dim, random.options.input),
        weight(weight_rows, random.options.dim, random.options.dim, random.options.weight),
        bias(1, weight_rows, weight_rows, random.options.weight) {}
  Matrix input, weight, bias;
  std::vector<int64_t> touched;
  std::vector<double> loss;

  std::string bits() const { return input.elements() + weight.elements() + bias.elements(); }
};

template <class T>
Output run(const RandomProblem& random, bool sparse, const ParallelFor& parallel_for) {
  Workspace workspace;
  const SamplePlan plan = random.plan(workspace);
  Output out(random, sparse ? plan.touched_count : random.options.classes);
  for (int64_t i = 0; i < random.options.batch; ++i) {  // the rows that do not count
    if (random.target[static_cast<size_t>(i)] == kIgnore) {
      for (int64_t d = 0; d < random.options.dim; ++d) out.input.set(i, d, 0);
    }
  }
  if (!sparse) {
    out.weight.fill(0);
    out.bias.fill(0);
  }
  out.touched.assign(plan.touched, plan.touched + plan.touched_count);
  const auto batch = static_cast<size_t>(random.options.batch);
  std::vector<T> loss(batch), lse(batch), target_logit(batch), error(batch);
  const std::vector<T> scale(random.row_scale.begin(), random.row_scale.end());
  const Gradients<T> gradients{
      scale.data(), out.input.view(), out.weight.view(),
      random.options.bias ? out.bias.vector() : Vector{nullptr, random.options.weight}, sparse};
  loss_and_grads<T>(random.problem(), plan,
                    {loss.data(), lse.data(), target_logit.data(), error.data()}, gradients,
                    workspace, active_isa(), parallel_for);
  out.loss.assign(loss.begin(), loss.end());
  return out;
}

// The error that rounding to the output's dtype makes, and that of the arithmetic.
double tolerance(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return 1e-12;
    case DType::f32:
      return 2e-5;
    case DType::bf16:
      return 1. / 256 + 2e-5;
    case DType::f16:
      return 1. / 2048 + 2e-5;
  }
  return 0;
}

double largest(const std::vector<double>& values) {
  double most = 0;
  for (const double v : values) most = std::max(most, std::abs(v));
  return most;
}

// How much of each term's size its factors' rounding may cost: E to bf16 where pairs of bf16 are
// multiplied, and for the weights' gradient one more, with its coefficient E or H: half an ulp each.
// In parts less is lost, 2^-15 of a product, but to the probabilities, by the logits' errors.
double term_rounding(const RandomProblem& random) {
  const double error = random.logit_error();
  if (error > 0) return std::ldexp(2, -15) + std::expm1(2 * error);
  return in_bf16(random.options) ? 2.01 / 256 : 0;
}

// got's row i is row row_of[i] of expected [*, columns]; expected's other rows must be zero.
void check_matrix(const char* name, const Matrix& got, const Sums& expected,
                  const std::vector<int64_t>& row_of, DType dtype, double rounding) {
  const double bound = tolerance(dtype);
  const double floor = (dtype == DType::f64 ? 1e-12 : 2e-5) * largest(expected.value) +
                       (dtype == DType::f16 ? 6e-8 : 0);
  const int64_t columns = got.columns();
  for (int64_t i = 0; i < got.rows(); ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      const Note note(std::string(name) + " at " + std::to_string(i) + ", " + std::to_string(j));
      const int64_t row = row_of.empty() ? i : row_of[static_cast<size_t>(i)];
      const auto at = static_cast<size_t>(row * columns + j);
      CHECK_CLOSE(got.at(i, j), expected.value[at], floor + rounding * expected.size[at], bound);
    }
  }
}

template <class T>
void check(const Options& options) {
  const Note note(options.text());
  const RandomProblem random(options);
  const Answers expected = random.gradients();
  const double rounding = term_rounding(random);
  for (const bool sparse : {false, true}) {
    const Note which(sparse ? "sparse" : "dense");
    const Output got = run<T>(random, sparse, serial());
    check_matrix("grad_input", got.input, expected.grad_input, {}, options.input, rounding);
    std::vector<int64_t> rows;
    if (sparse) rows = got.touched;
    check_matrix("grad_weight", got.weight, expected.grad_weight, rows, options.weight, rounding);
    if (options.bias) {
      for (int64_t n = 0; n < got.bias.columns(); ++n) {
        const auto c = static_cast<size_t>(sparse ? rows[static_cast<size_t>(n)] : n);
        const Note where("grad_bias of class " + std::to_string(c));
        CHECK_CLOSE(
            got.bias.at(0, n), expected.grad_bias.value[c],
            2e-5 * largest(expected.grad_bias.value) + rounding * expected.grad_bias.size[c],
            tolerance(options.weight));
      }
    }
    for (size_t i = 0; i < got.loss.size(); ++i) {
      CHECK_CLOSE(got.loss[i], expected.loss[i],
                  1e-5 * (1 + std::abs(expected.lse[i]) + std::abs(expected.target_logit[i])) +
                      random.logit_error(),
                  0);
    }
    CHECK(run<T>(random, sparse, threads<3>()).bits() == got.bits());
    CHECK(run<T>(random, sparse, serial()).bits() == got.bits());
  }
}

void check(const Options& options) {
  options.input == DType::f64 ? check<double>(options) : check<float>(options);
}

}  // namespace

TEST(every_shape_and_dtype) { check_each(shapes_and_dtypes(), check); }

TEST(dtypes_mix) { check_each(mixed_dtypes(), check); }

TEST(every_option) { check_each(all_options(), check); }

TEST(samples_that_are_all_duplicates) { check_each(all_duplicates(), check); }

TEST(logits_far_above_and_below_the_targets) { check_each(distant_logits(), check); }

TEST(several_chunks_of_rows) {
  for (const auto& [dtype, products] : {Kind{DType::f32}, Kind{DType::bf16}, kRounded}) {
    check({.batch = 2101,
           .dim = 3,
           .classes = 40,
           .samples = 33,
           .input = dtype,
           .weight = dtype,
           .products = products});
  }
}

TEST(no_samples_and_no_rows) {
  check({.batch = 4, .dim = 6, .classes = 10, .samples = 0});
  check({.batch = 0, .dim = 6, .classes = 10, .samples = 5});
}

TEST(a_row_whose_samples_are_all_removed_has_no_gradient) {
  RandomProblem random({.batch = 3, .dim = 6, .classes = 10, .samples = 5, .ignore_some = false});
  random.ids.assign(5, 7);
  random.target.assign(3, 7);
  const Output out = run<float>(random, false, serial());
  for (const Matrix* matrix : {&out.input, &out.weight, &out.bias}) {
    for (int64_t i = 0; i < matrix->rows(); ++i)
      for (int64_t j = 0; j < matrix->columns(); ++j) CHECK_EQ(matrix->at(i, j), 0.);
  }
}

TEST(nan_in_a_row_leaves_the_gradients_of_other_rows) {
  RandomProblem random({.batch = 40, .dim = 24, .classes = 90, .samples = 50});
  const Answers expected = random.gradients();
  random.input.set(17, 5, std::nan(""));
  const Output out = run<float>(random, true, serial());
  for (int64_t i = 0; i < 40; ++i) {
    for (int64_t d = 0; d < 24; ++d) {
      if (i != 17) {
        CHECK_CLOSE(out.input.at(i, d), expected.grad_input.value[static_cast<size_t>(i * 24 + d)],
                    1e-6, 1e-4);
      }
    }
  }
}

}  // namespace ssc::test
