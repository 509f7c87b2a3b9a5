// Unit rows and the way back (csrc/cpu/loss/unit_rows.h) against loops in double.
#include <cmath>

#include "csrc/cpu/loss/unit_rows.h"
#include "tests/cpp/check.h"
#include "tests/cpp/loss_problem.h"

namespace ssc::test {
namespace {

template <class T>
void check(const Options& o) {
  const Note note(o.text());
  const RandomProblem random(o);
  const auto dim = static_cast<size_t>(o.dim);
  std::vector<int64_t> classes;
  for (int64_t k = 0; k < o.classes; k += 1 + k % 3) classes.push_back(k);
  const auto count = static_cast<int64_t>(classes.size());
  const double close = sizeof(T) == 8 ? 1e-12 : 2e-5;

  std::vector<T> unit(classes.size() * dim), norm(classes.size()), grad(unit.size()), out(grad);
  const MatrixView weight = random.problem().weight;
  unit_rows<T>(weight, classes.data(), count, o.dim, unit.data(), norm.data(), active_isa(),
               threads<3>());
  for (size_t i = 0; i < grad.size(); ++i) grad[i] = static_cast<T>(static_cast<double>(i % 9) - 4);
  unit_rows_grad<T>(grad.data(), unit.data(), norm.data(), count, o.dim, out.data(), active_isa(),
                    threads<2>());
  for (size_t n = 0; n < classes.size(); ++n) {
    double square = 0, inner = 0;
    for (int64_t d = 0; d < o.dim; ++d) {
      const double w = random.weight.at(classes[n], d);
      square += w * w;
      inner += w * static_cast<double>(grad[n * dim + static_cast<size_t>(d)]);
    }
    const double length = std::sqrt(square), divisor = std::max(length, 1e-12);
    CHECK_CLOSE(norm[n], length, close * length, 0);
    for (int64_t d = 0; d < o.dim; ++d) {
      const size_t at = n * dim + static_cast<size_t>(d);
      const double u = random.weight.at(classes[n], d) / divisor;
      const double g = (static_cast<double>(grad[at]) - u * inner / divisor) / divisor;
      CHECK_CLOSE(unit[at], u, close, 0);
      CHECK_CLOSE(out[at], g, close * 16 / divisor, 0);
    }
  }
}

}  // namespace

TEST(every_shape_and_dtype) {
  check_each(shapes_and_dtypes(),
             [](const Options& o) { o.weight == DType::f64 ? check<double>(o) : check<float>(o); });
}

TEST(a_row_of_zeros_is_divided_by_a_constant) {
  const float zeros[3] = {}, grad[3] = {1, -2, 0};
  const int64_t classes[1] = {0};
  float unit[3], norm[1], out[3];
  unit_rows<float>({zeros, 3, DType::f32}, classes, 1, 3, unit, norm, active_isa(), serial());
  unit_rows_grad<float>(grad, unit, norm, 1, 3, out, active_isa(), serial());
  for (int d = 0; d < 3; ++d) {
    CHECK(unit[d] == 0);
    CHECK_CLOSE(out[d], grad[d] * 1e12, 1e6, 0);
  }
}

}  // namespace ssc::test
