// The negatives' loss and its gradients (NegativesForm of csrc/cpu/loss/table.h) against loops in
// double:
// given target logits, several hits per row, caps, softplus.
#include <cmath>
#include <random>

#include "tests/cpp/check.h"
#include "tests/cpp/loss_problem.h"

namespace ssc::test {
namespace {

constexpr int64_t kHits = 3;

// A RandomProblem whose rows have lists of hits and a logit that is given. even: all copies of a
// class have one count, as a sampler gives them.
struct Case {
  Case(const Options& options, NegativesForm of, bool even) : random(options), form(of) {
    std::mt19937_64 bits(options.seed);
    const auto pick = [&](int64_t n) {
      return static_cast<int64_t>(bits() % static_cast<uint64_t>(n));
    };
    for (int64_t s = 0; even && s < options.samples; ++s) {
      const int64_t id = random.ids[static_cast<size_t>(s)];
      random.log_count[static_cast<size_t>(s)] = static_cast<float>(id % 7) / 4 - 1;
    }
    for (int64_t i = 0; i < options.batch; ++i) {
      for (int64_t k = 0; k < kHits; ++k) {
        hits.push_back(k == 2 ? -1 : random.ids[static_cast<size_t>(pick(options.samples))]);
      }
      counted.push_back(random.target[static_cast<size_t>(i)] != kIgnore);
      given.push_back(static_cast<double>(pick(9)) / 4 - 1);
    }
  }

  bool is_hit(int64_t row, int64_t id) const {
    for (int64_t k = 0; k < kHits; ++k) {
      if (hits[static_cast<size_t>(row * kHits + k)] == id) return true;
    }
    return false;
  }

  RandomProblem random;
  NegativesForm form;
  std::vector<int64_t> hits;
  std::vector<char> counted;
  std::vector<double> given;
};

struct Truth {
  std::vector<double> loss, peak;
  Sums grad_input, grad_weight, grad_bias;
};

Truth truth_of(const Case& c) {
  const Options& o = c.random.options;
  Truth out;
  out.grad_input.resize(o.batch * o.dim);
  out.grad_weight.resize(o.classes * o.dim);
  out.grad_bias.resize(o.classes);
  for (int64_t i = 0; i < o.batch; ++i) {
    out.loss.push_back(0);
    out.peak.push_back(c.counted[static_cast<size_t>(i)] ? -kInfinity : 0);
    if (!c.counted[static_cast<size_t>(i)]) continue;
    std::vector<double> z, slope;
    std::vector<int64_t> ids;
    for (int64_t s = 0; s < o.samples; ++s) {
      const int64_t id = c.random.ids[static_cast<size_t>(s)];
      const double x = c.random.logit(i, id);
      const double t = c.form.softcap > 0 ? std::tanh(x / c.form.softcap) : 0;
      const double capped = c.form.softcap > 0 ? c.form.softcap * t : x;
      const double count = o.log_counts ? c.random.log_count[static_cast<size_t>(s)] : 0;
      if (!c.is_hit(i, id)) out.peak.back() = std::max(out.peak.back(), capped - count);
      if (o.remove_hits && c.is_hit(i, id)) continue;
      z.push_back(capped - count);
      slope.push_back(1 - t * t);
      ids.push_back(id);
    }
    const double r = c.given[static_cast<size_t>(i)];
    double largest = r, total = 0;
    for (const double x : z) largest = std::max(largest, x);
    for (const double x : z) {
      if (c.form.sigmoid) out.loss.back() += std::max(x, 0.) + std::log1p(std::exp(-std::abs(x)));
      total += std::exp(x - largest);
    }
    total += std::exp(r - largest);
    if (!c.form.sigmoid) out.loss.back() = largest + std::log(total) - r;
    for (size_t s = 0; s < z.size(); ++s) {
      const double p =
          c.form.sigmoid ? 1 / (1 + std::exp(-z[s])) : std::exp(z[s] - largest) / total;
      const double g =
          c.random.row_scale[static_cast<size_t>(i)] * o.inv_temperature * p * slope[s];
      out.grad_bias.add(ids[s], g);
      for (int64_t d = 0; d < o.dim; ++d) {
        out.grad_input.add(i * o.dim + d, g * c.random.weight.at(ids[s], d));
        out.grad_weight.add(ids[s] * o.dim + d, g * c.random.input.at(i, d));
      }
    }
  }
  return out;
}

double tolerance(DType dtype) {
  return dtype == DType::f64 ? 1e-12 : dtype == DType::f32 ? 3e-5 : 1. / 100;
}

// terms: how much of each term's size may be lost, E being rounded to bf16 where pairs of bf16 are
// multiplied, and for the weights' gradient one factor more.
void check_sums(const Matrix& got, const Sums& expected, double terms, const char* what) {
  const Note note(what);
  for (int64_t i = 0; i < got.rows(); ++i) {
    for (int64_t d = 0; d < got.columns(); ++d) {
      const auto at = static_cast<size_t>(i * got.columns() + d);
      CHECK_CLOSE(got.at(i, d), expected.value[at], terms * expected.size[at] + 1e-6, 1. / 100);
    }
  }
}

// Sparse gradients are the rows of the dense ones, bit by bit.
template <class T>
void check_sparse(const LossProblem& p, const SamplePlan& plan, const RowResults<T>& results,
                  Gradients<T> gradients, Workspace& workspace, const Matrix& weight,
                  const Matrix& bias) {
  const Note note("sparse");
  Matrix rows(plan.touched_count, p.dim, p.dim, p.weight.dtype);
  Matrix entries(1, plan.touched_count, plan.touched_count, p.weight.dtype);
  gradients.weight = rows.view();
  if (gradients.bias.data != nullptr) gradients.bias = entries.vector();
  gradients.sparse = true;
  loss_and_grads<T>(p, plan, results, gradients, workspace, active_isa(), threads<2>());
  for (int64_t n = 0; n < plan.touched_count; ++n) {
    CHECK(n == 0 || plan.touched[n] > plan.touched[n - 1]);
    for (int64_t d = 0; d < p.dim; ++d) CHECK(rows.at(n, d) == weight.at(plan.touched[n], d));
    if (gradients.bias.data != nullptr) CHECK(entries.at(0, n) == bias.at(0, plan.touched[n]));
  }
}

template <class T>
void check(const Options& o, NegativesForm form, bool even) {
  const Note note(o.text() + (form.sigmoid ? " sigmoid" : "") + (form.softcap > 0 ? " cap" : "") +
                  (even ? "" : " uneven"));
  Case c(o, form, even);
  Workspace workspace;
  LossProblem problem = c.random.problem();
  const std::vector<T> given(c.given.begin(), c.given.end());
  problem.target = nullptr;
  problem.negatives = &c.form;
  problem.target_logit = {given.data(), sizeof(T) == 8 ? DType::f64 : DType::f32};
  // Classes that are touched without a sample have gradients of zero.
  const std::vector<int64_t> others = {o.classes - 1, -1, o.classes / 2};
  const SamplePlan plan = plan_negatives(
      c.random.ids.data(), o.samples, o.log_counts ? c.random.log_count.data() : nullptr,
      DType::f32, c.hits.data(), kHits, reinterpret_cast<const bool*>(c.counted.data()), o.batch,
      o.classes, o.remove_hits, form.sigmoid, others.data(), static_cast<int64_t>(others.size()),
      workspace);
  const Truth expected = truth_of(c);
  const auto batch = static_cast<size_t>(o.batch);
  std::vector<T> loss(batch), peak(batch);
  const RowResults<T> results = {loss.data(), nullptr, nullptr, nullptr, peak.data()};
  loss_rows<T>(problem, plan, results, workspace, active_isa(), threads<2>());
  const double close = tolerance(o.input), error = c.random.logit_error();
  const auto check_rows = [&] {
    for (size_t i = 0; i < batch; ++i) {
      const double size = form.sigmoid ? static_cast<double>(o.samples) : 4;
      CHECK_CLOSE(loss[i], expected.loss[i], (close + error) * size, close);
      CHECK_CLOSE(peak[i], expected.peak[i], close * 8 + error, 0);
    }
  };
  check_rows();

  Matrix input(o.batch, o.dim, o.dim, o.input), weight(o.classes, o.dim, o.dim, o.weight);
  Matrix bias(1, o.classes, o.classes, o.weight);
  input.fill(0);
  weight.fill(0);
  bias.fill(0);
  const std::vector<T> scale(c.random.row_scale.begin(), c.random.row_scale.end());
  const Gradients<T> gradients{scale.data(), input.view(), weight.view(),
                               o.bias ? bias.vector() : Vector{nullptr, o.weight}, false};
  loss_and_grads<T>(problem, plan, results, gradients, workspace, active_isa(), threads<3>());
  check_rows();
  check_sparse<T>(problem, plan, results, gradients, workspace, weight, bias);
  // Half an ulp of bf16; in parts less is lost but by the logits' errors.
  const double rounding = error > 0 ? std::expm1(2 * error) : in_bf16(o) ? 1. / 256 : 0;
  check_sums(input, expected.grad_input, 1e-4 + rounding, "input");
  check_sums(weight, expected.grad_weight, 1e-4 + 2 * rounding, "weight");
  if (o.bias) check_sums(bias, expected.grad_bias, 1e-4 + 2 * rounding, "bias");
}

void check_forms(const Options& o) {
  for (const bool sigmoid : {false, true}) {
    for (const double softcap : {0., 0.75}) {
      for (const bool even : {false, true}) {
        const NegativesForm form{sigmoid, softcap};
        o.input == DType::f64 ? check<double>(o, form, even) : check<float>(o, form, even);
      }
    }
  }
}

}  // namespace

TEST(every_shape_and_dtype) { check_each(shapes_and_dtypes(), check_forms); }

TEST(every_option) { check_each(all_options(), check_forms); }

TEST(copies_of_a_class) { check_each(all_duplicates(), check_forms); }

}  // namespace ssc::test
