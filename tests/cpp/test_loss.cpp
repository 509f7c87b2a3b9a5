// The forward kernels (sampled and exact loss, logits) against loops in double.
#include "tests/cpp/check.h"
#include "tests/cpp/loss_problem.h"

namespace ssc::test {
namespace {

template <class T>
struct Rows {
  explicit Rows(int64_t batch)
      : loss(static_cast<size_t>(batch)), lse(loss), target_logit(loss), error(loss) {}
  RowResults<T> results() { return {loss.data(), lse.data(), target_logit.data(), error.data()}; }
  bool operator==(const Rows&) const = default;
  std::vector<T> loss, lse, target_logit, error;
};

template <class T>
constexpr double kTolerance = std::is_same_v<T, double> ? 1e-12 : 2e-5;

// logit_error: beyond the rounding of T.
template <class T>
void check_rows(const Rows<T>& got, const Answers& expected, double logit_error = 0) {
  const double tolerance = kTolerance<T>;
  for (size_t i = 0; i < got.loss.size(); ++i) {
    // A loss is a difference of lse and target logit, so it is as good as they are.
    const double size = 1 + std::abs(expected.lse[i]) + std::abs(expected.target_logit[i]);
    const Note note("row " + std::to_string(i));
    CHECK_CLOSE(got.loss[i], expected.loss[i], tolerance * size + logit_error, 0);
    CHECK_CLOSE(got.lse[i], expected.lse[i], tolerance * size + logit_error, 0);
    CHECK_CLOSE(got.target_logit[i], expected.target_logit[i], tolerance * size, 0);
    // Nearly equal logits may compare either way, exactly equal ones not.
    if (expected.margin[i] == 0 || expected.margin[i] > 1e-3 + logit_error)
      CHECK_EQ(got.error[i], expected.error[i]);
  }
}

template <class T>
Rows<T> run_sampled(const RandomProblem& random, const ParallelFor& parallel_for) {
  Workspace workspace;
  Rows<T> rows(random.options.batch);
  const SamplePlan plan = random.plan(workspace);
  loss_rows<T>(random.problem(), plan, rows.results(), workspace, active_isa(), parallel_for);
  return rows;
}

template <class T>
Rows<T> run_exact(const RandomProblem& random, const ParallelFor& parallel_for) {
  Workspace workspace;
  Rows<T> rows(random.options.batch);
  const SamplePlan plan =
      plan_samples(nullptr, 0, nullptr, DType::f32, random.target.data(), random.options.batch,
                   random.options.classes, kIgnore, true, workspace);
  LossProblem problem = random.problem();
  problem.target_log_expected_count.data = nullptr;
  exact_loss_rows<T>(problem, plan, rows.results(), workspace, active_isa(), parallel_for);
  return rows;
}

template <class T>
void check(const Options& options) {
  const Note note(options.text());
  const RandomProblem random(options);
  const Rows<T> sampled = run_sampled<T>(random, serial());
  check_rows(sampled, random.rows(), random.logit_error());
  CHECK(run_sampled<T>(random, threads<3>()) == sampled);
  const Rows<T> exact = run_exact<T>(random, serial());
  {
    const Note which("exact");
    check_rows(exact, random.rows(RandomProblem::Samples::all_classes), random.logit_error());
  }
  CHECK(run_exact<T>(random, threads<2>()) == exact);
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

TEST(several_chunks_of_rows) { check({.batch = 2100, .dim = 2, .classes = 40, .samples = 17}); }

TEST(no_samples_and_no_rows) {
  check({.batch = 4, .dim = 6, .classes = 10, .samples = 0});
  check({.batch = 0, .dim = 6, .classes = 10, .samples = 5});
  RandomProblem all_ignored({.batch = 4, .dim = 6, .classes = 10, .samples = 5});
  all_ignored.target.assign(4, kIgnore);
  check_rows(run_sampled<float>(all_ignored, serial()), all_ignored.rows());
}

TEST(a_row_whose_samples_are_all_removed_has_loss_zero) {
  RandomProblem random({.batch = 3, .dim = 6, .classes = 10, .samples = 5, .ignore_some = false});
  random.ids.assign(5, 7);
  random.target.assign(3, 7);
  const Rows<float> rows = run_sampled<float>(random, serial());
  for (const float loss : rows.loss) CHECK_EQ(loss, 0.f);
}

TEST(nan_and_inf_stay_in_their_row) {
  for (const double poison : {std::nan(""), kInfinity}) {
    const Options options{
        .batch = 40, .dim = 24, .classes = 90, .samples = 50, .ignore_some = false};
    RandomProblem random(options);
    const Answers clean = random.rows();
    random.input.set(17, 5, poison);
    Rows<float> rows = run_sampled<float>(random, serial());
    CHECK(std::isnan(rows.loss[17]));
    for (std::vector<float>* v : {&rows.loss, &rows.lse, &rows.target_logit}) (*v)[17] = 0;
    Answers expected = clean;
    for (std::vector<double>* v : {&expected.loss, &expected.lse, &expected.target_logit})
      (*v)[17] = 0;
    expected.error[17] = rows.error[17];
    check_rows(rows, expected);
  }
}

// All bits of float32, over a range of exponents, whatever its products are made of.
TEST(a_logit_loses_at_most_its_share_of_the_norms) {
  constexpr int64_t kBatch = 33, kDim = 77, kClasses = 65;
  std::mt19937_64 random(3);
  std::normal_distribution<double> normal;
  RandomProblem problem({.batch = kBatch, .dim = kDim, .classes = kClasses, .samples = 1});
  for (Matrix* matrix : {&problem.input, &problem.weight}) {
    for (int64_t i = 0; i < matrix->rows(); ++i)
      for (int64_t d = 0; d < kDim; ++d) matrix->set(i, d, std::exp(2 * normal(random)) - 1);
  }
  const auto norm = [](const Matrix& matrix, int64_t row) {
    double squares = 0;
    for (int64_t d = 0; d < kDim; ++d) squares += std::pow(matrix.at(row, d), 2);
    return std::sqrt(squares);
  };
  for (const auto& [products, share] : {std::pair{Products::ieee, 0.},
                                        {Products::tf32, 1. / 32768},
                                        {Products::bf16, 2.01 / 256}}) {
    problem.options.products = products;
    Matrix out(kBatch, kClasses, kClasses, DType::f32);
    Workspace workspace;
    logits<float>(problem.problem(), 0, kClasses, out.view(), workspace, active_isa(), serial());
    double most = 0;
    for (int64_t i = 0; i < kBatch; ++i) {
      for (int64_t c = 0; c < kClasses; ++c) {
        const double size = norm(problem.input, i) * norm(problem.weight, c);
        const double error = std::abs(out.at(i, c) - problem.logit(i, c)) / size;
        most = std::max(most, error);
        CHECK(error <= share + 1e-6);
      }
    }
    const bool rounded =
        in_bf16({.batch = 1, .dim = 1, .classes = 1, .samples = 1, .products = products});
    CHECK(rounded == (most > 2e-6));
  }
}

TEST(logits_of_a_range_of_classes) {
  for (const Kind& kind : {Kind{DType::f32}, Kind{DType::f64}, Kind{DType::bf16}, Kind{DType::f16},
                           kRounded, kInParts}) {
    const Options options =
        of_kind(kind, {.batch = 21, .dim = 37, .classes = 150, .samples = 1, .inv_temperature = 2});
    const Note note(options.text());
    const RandomProblem random(options);
    const bool wide = kind.dtype == DType::f64;
    for (const auto& [begin, count] : {std::pair{0, 150}, {3, 1}, {31, 77}, {149, 1}, {10, 0}}) {
      Matrix out(options.batch, count, count + 5, wide ? DType::f64 : DType::f32);
      Workspace workspace;
      if (wide) {
        logits<double>(random.problem(), begin, count, out.view(), workspace, active_isa(),
                       threads<2>());
      } else {
        logits<float>(random.problem(), begin, count, out.view(), workspace, active_isa(),
                      threads<2>());
      }
      for (int64_t i = 0; i < options.batch; ++i) {
        for (int64_t c = 0; c < count; ++c)
          CHECK_CLOSE(out.at(i, c), random.logit(i, begin + c),
                      wide ? 1e-13 : 1e-5 + random.logit_error(), 0);
      }
    }
  }
}

TEST(the_plan_names_the_first_target_or_id_that_is_no_class) {
  RandomProblem random({.batch = 6, .dim = 2, .classes = 10, .samples = 5});
  Workspace workspace;
  random.target[3] = 10;
  CHECK_EQ(random.plan(workspace).bad_target, 3);
  random.target[2] = -1;
  CHECK_EQ(random.plan(workspace).bad_target, 2);
  random.target.assign(6, 9);
  random.ids[4] = -1;
  CHECK_EQ(random.plan(workspace).bad_id, 4);
}

}  // namespace ssc::test
