// Per-row negatives against loops in double: losses, and gradients that are those of the losses.
#include "csrc/cpu/per_row/per_row.h"
#include "tests/cpp/check.h"
#include "tests/cpp/loss_problem.h"

namespace ssc::test {
namespace {

constexpr double kNothing = 1e-24;  // what exp's floor, e^-60, may cut off

constexpr PhiloxKey kKey{0x9e3779b97f4a7c15, 42};

struct RowCase {
  int64_t batch, dim, classes, samples;
  DType dtype = DType::f32;
  bool bias = true, counts = true, remove_hits = true, some_counted = true, sigmoid = false;
  double softcap = 0;
  double distance = 0;  // of r, what exp's reference point is

  std::string text() const {
    return "B=" + std::to_string(batch) + " D=" + std::to_string(dim) +
           " C=" + std::to_string(classes) + " S=" + std::to_string(samples) + " " +
           dtype_name(dtype) + (bias ? "" : " no bias") + (counts ? "" : " no counts") +
           (remove_hits ? "" : " hits kept") + (some_counted ? "" : " all rows") +
           (sigmoid ? " sigmoid" : "") + " softcap=" + std::to_string(softcap) + " r+" +
           std::to_string(distance);
  }
};

template <class T>
struct Output {
  std::vector<T> loss, peak;
  Matrix input, weight, bias;
  std::vector<int64_t> touched;
  std::string bits() const { return input.elements() + weight.elements() + bias.elements(); }
};

// Values with eight significant bits, as in loss_problem.h. The memory of ids and counts ends with
// their last element.
struct Random {
  explicit Random(const RowCase& c)
      : options(c),
        input(c.batch, c.dim, c.dim + 3, c.dtype),
        weight(c.classes, c.dim, c.dim + 1, c.dtype),
        bias(1, c.classes, c.classes, c.dtype),
        counts(c.batch, c.samples, c.samples, DType::f32) {
    std::mt19937_64 engine(3);
    const auto value = [&] {
      return static_cast<double>(static_cast<int>(engine() % 255) - 127) / 64;
    };
    for (int64_t i = 0; i < c.batch; ++i)
      for (int64_t d = 0; d < c.dim; ++d) input.set(i, d, value() / 2);
    for (int64_t k = 0; k < c.classes; ++k) {
      for (int64_t d = 0; d < c.dim; ++d) weight.set(k, d, value() / 8);
      bias.set(0, k, value());
    }
    for (int64_t i = 0; i < c.batch; ++i) {
      for (int64_t s = 0; s < c.samples; ++s) {
        ids.push_back(static_cast<int64_t>(engine() % static_cast<uint64_t>(c.classes)));
        counts.set(i, s, engine() % 8 == 0 ? kInfinity : value());
      }
      target_logit.push_back(value() + c.distance);
      row_scale.push_back(value());
      counted.push_back(engine() % 4 != 0);
      hits.push_back(c.samples > 0 ? ids[static_cast<size_t>(i * c.samples)] : -1);
      hits.push_back(-1);
    }
  }

  template <class T>
  PerRowProblem<T> problem(const std::vector<T>& r, const bool* flags) const {
    const RowCase& c = options;
    PerRowProblem<T> p{};
    p.input = input.view();
    p.weight = weight.view();
    p.bias = {c.bias ? bias.vector().data : nullptr, c.dtype};
    p.target_logit = r.data();
    p.hits = hits.data();
    p.num_hits = 2;
    p.remove_hits = c.remove_hits;
    p.counted = c.some_counted ? flags : nullptr;
    p.samples.ids = ids.data();
    p.samples.log_count = {c.counts ? counts.vector().data : nullptr, DType::f32};
    p.samples.num_samples = c.samples;
    p.batch = c.batch, p.dim = c.dim, p.classes = c.classes;
    p.inv_temperature = 0.75, p.softcap = c.softcap, p.sigmoid = c.sigmoid;
    return p;
  }

  RowCase options;
  Matrix input, weight, bias, counts;
  std::vector<int64_t> ids, hits;
  std::vector<double> target_logit, row_scale;
  std::vector<char> counted;
};

template <class T>
Output<T> run(const Random& random, bool sparse, const ParallelFor& parallel_for,
              const RowDraws* draws = nullptr) {
  const RowCase& c = random.options;
  const std::vector<T> r(random.target_logit.begin(), random.target_logit.end());
  const std::vector<T> scale(random.row_scale.begin(), random.row_scale.end());
  const auto flags = std::make_unique<bool[]>(static_cast<size_t>(c.batch));
  std::copy(random.counted.begin(), random.counted.end(), flags.get());
  PerRowProblem<T> problem = random.problem<T>(r, flags.get());
  problem.samples.draws = draws;
  problem.samples.corrected = true;
  const bool listed = sparse || element_size(c.dtype) != sizeof(T);
  std::vector<int64_t> touched;
  if (listed) touched = touched_classes(problem, parallel_for);
  const auto count = static_cast<int64_t>(touched.size());
  const int64_t size = sparse ? count : c.classes;
  Output<T> out{std::vector<T>(static_cast<size_t>(c.batch)),
                std::vector<T>(static_cast<size_t>(c.batch)),
                Matrix(c.batch, c.dim, c.dim, c.dtype),
                Matrix(size, c.dim, c.dim, c.dtype),
                Matrix(1, size, size, c.dtype),
                touched};
  per_row_loss(problem, out.loss.data(), out.peak.data(), parallel_for);
  for (Matrix* m : {&out.input, &out.weight, &out.bias}) m->fill(0);
  const Vector bias = {c.bias ? out.bias.vector().data : nullptr, c.dtype};
  per_row_grads<T>(problem,
                   {scale.data(), out.input.view(), out.weight.view(), bias,
                    listed ? out.touched.data() : nullptr, listed ? count : c.classes, sparse},
                   parallel_for);
  return out;
}

template <class T>
void check(const RowCase& c) {
  const Note note(c.text());
  const Random random(c);
  const Output<T> dense = run<T>(random, false, serial());
  const Output<T> sparse = run<T>(random, true, serial());
  const double eps = c.dtype == DType::f64   ? 1e-12
                     : c.dtype == DType::f32 ? 3e-5
                     : c.dtype == DType::f16 ? 2e-3
                                             : 1.2e-2;
  const double row_eps = c.dtype == DType::f64 ? 1e-12 : 3e-5;
  std::vector<double> grad_weight(static_cast<size_t>(c.classes * c.dim));
  std::vector<double> grad_bias(static_cast<size_t>(c.classes));
  std::vector<double> size_of(static_cast<size_t>(c.classes));  // of the terms
  for (int64_t i = 0; i < c.batch; ++i) {
    const Note row_note("row " + std::to_string(i));
    const auto row = static_cast<size_t>(i);
    const bool counted = !c.some_counted || random.counted[row] != 0;
    const double r = random.target_logit[row];
    std::vector<double> z, slope;
    std::vector<int64_t> kept;
    double peak = -kInfinity, most = c.sigmoid ? 0 : r;
    for (int64_t s = 0; s < c.samples; ++s) {
      const int64_t id = random.ids[static_cast<size_t>(i * c.samples + s)];
      const double count = c.counts ? random.counts.at(i, s) : 0;
      const bool hit = id == random.hits[2 * row];
      if (std::isinf(count) || !counted) continue;
      double x = c.bias ? random.bias.at(0, id) : 0;
      for (int64_t d = 0; d < c.dim; ++d) x += random.input.at(i, d) * random.weight.at(id, d);
      x *= 0.75;
      const double t = c.softcap > 0 ? std::tanh(x / c.softcap) : 0;
      const double value = (c.softcap > 0 ? c.softcap * t : x) - count;
      if (!hit) peak = std::max(peak, value);
      if (hit && c.remove_hits) continue;
      z.push_back(value), slope.push_back(1 - t * t), kept.push_back(id);
      most = std::max(most, value);
    }
    double total = std::exp(r - most), loss = 0;
    for (const double value : z) {
      total += std::exp(value - most);
      loss += std::max(value, 0.0) + std::log1p(std::exp(-std::abs(value)));
    }
    if (!c.sigmoid) loss = std::log(total) + most - r;
    CHECK_CLOSE(dense.loss[row], counted ? loss : 0, row_eps * (1 + std::abs(most - r)), row_eps);
    CHECK_CLOSE(dense.peak[row], counted ? peak : 0, row_eps, row_eps);
    std::vector<double> grad(static_cast<size_t>(c.dim));
    for (size_t j = 0; j < z.size(); ++j) {
      const double p = c.sigmoid ? 1 / (1 + std::exp(-z[j])) : std::exp(z[j] - most) / total;
      const double g = random.row_scale[row] * 0.75 * p * slope[j];
      const auto id = static_cast<size_t>(kept[j]);
      for (int64_t d = 0; d < c.dim; ++d) {
        grad[static_cast<size_t>(d)] += g * random.weight.at(kept[j], d);
        grad_weight[id * static_cast<size_t>(c.dim) + static_cast<size_t>(d)] +=
            g * random.input.at(i, d);
      }
      grad_bias[id] += g;
      size_of[id] += std::abs(g);
    }
    for (int64_t d = 0; d < c.dim; ++d) {
      const double scale = 1 + std::abs(random.row_scale[row]);
      CHECK_CLOSE(dense.input.at(i, d), grad[static_cast<size_t>(d)], eps * scale, eps);
    }
  }
  for (int64_t k = 0; k < c.classes; ++k) {
    const Note class_note("class " + std::to_string(k));
    const auto id = static_cast<size_t>(k);
    const auto place = std::lower_bound(sparse.touched.begin(), sparse.touched.end(), k);
    const bool there = place != sparse.touched.end() && *place == k;
    if (size_of[id] != 0) CHECK(there);
    for (int64_t d = 0; d < c.dim; ++d) {
      const double got = dense.weight.at(k, d);
      CHECK_CLOSE(got, grad_weight[id * static_cast<size_t>(c.dim) + static_cast<size_t>(d)],
                  kNothing + eps * size_of[id], eps);
      CHECK_EQ(there ? sparse.weight.at(place - sparse.touched.begin(), d) : 0.0, got);
    }
    if (c.bias) CHECK_CLOSE(dense.bias.at(0, k), grad_bias[id], kNothing + eps * size_of[id], eps);
  }
}

void check(const RowCase& c) { c.dtype == DType::f64 ? check<double>(c) : check<float>(c); }

}  // namespace

TEST(every_shape_and_dtype) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16}) {
    for (const auto& [batch, dim, classes, samples] :
         std::vector<std::array<int64_t, 4>>{{1, 1, 1, 1},
                                             {5, 3, 7, 40},
                                             {9, 33, 129, 20},
                                             {4, 130, 300, 67},
                                             {3, 16, 2, 0},
                                             {0, 4, 5, 3},
                                             {2, 64, 9000, 70}}) {
      check({batch, dim, classes, samples, dtype});
    }
  }
}

TEST(every_option) {
  for (int bits = 0; bits < 32; ++bits) {
    check({.batch = 7,
           .dim = 19,
           .classes = 30,
           .samples = 25,
           .bias = (bits & 1) != 0,
           .counts = (bits & 2) != 0,
           .remove_hits = (bits & 4) != 0,
           .some_counted = (bits & 8) != 0,
           .sigmoid = (bits & 16) != 0,
           .softcap = bits % 3 == 0 ? 1.5 : 0});
  }
}

TEST(samples_far_from_the_target) {
  for (const double distance : {-500., -45., 60., 500.}) {
    check({.batch = 4, .dim = 8, .classes = 30, .samples = 40, .distance = distance});
  }
}

TEST(several_chunks_and_any_partition_give_the_same_bits) {
  const Random random({.batch = 70, .dim = 20, .classes = 700, .samples = 9000});
  const Output<float> one = run<float>(random, false, serial());
  CHECK(one.bits() == run<float>(random, false, threads<3>()).bits());
}

TEST(a_key_stands_for_the_ids_that_it_gives) {
  const RowCase c{.batch = 6, .dim = 12, .classes = 400, .samples = 600, .counts = true};
  std::vector<double> probability(400, 1.0 / 400);
  const double tries = 900;
  std::vector<int64_t> exclude{3, -1, 5, 3, 3, 4, -1, -1, 399, 0, 1, 2};
  for (const DrawMethod method :
       {DrawMethod::with_replacement, DrawMethod::distinct, DrawMethod::race}) {
    for (const int64_t listed : {int64_t{0}, int64_t{2}}) {
      Random random(c);
      const int64_t samples = method == DrawMethod::with_replacement ? 600 : 390;
      random.options.samples = samples;
      const RowDraws draws{{ProposalKind::log_uniform, 400, make_log_uniform(400), {}, nullptr},
                           kKey,
                           samples,
                           method,
                           method == DrawMethod::distinct ? &tries : nullptr,
                           exclude.data(),
                           listed,
                           400};
      const Output<float> keyed = run<float>(random, false, threads<3>(), &draws);
      random.counts = Matrix(6, samples, samples, DType::f32);
      random.ids.assign(static_cast<size_t>(6 * samples), 0);
      RowSampler sampler(draws);
      std::vector<float> counts(static_cast<size_t>(samples));
      for (int64_t i = 0; i < 6; ++i) {
        sampler.draw(i, random.ids.data() + i * samples);
        sampler.log_counts(random.ids.data() + i * samples, samples, counts.data());
        for (int64_t s = 0; s < samples; ++s)
          random.counts.set(i, s, counts[static_cast<size_t>(s)]);
      }
      const Output<float> given = run<float>(random, false, serial());
      CHECK(keyed.bits() == given.bits());
      CHECK(keyed.loss == given.loss);
    }
  }
}

TEST(what_is_wrong_is_said) {
  Random random({.batch = 2, .dim = 3, .classes = 5, .samples = 4, .some_counted = false});
  random.ids[6] = 5;
  CHECK_THROWS("ids[1, 2] is out of range: expected [0, C=5)", run<float>(random, false, serial()));
  const std::vector<int64_t> exclude{0, 1, 2, 3, 4, 4, 4, 4};
  const RowDraws draws{{ProposalKind::uniform, 5, {}, {}, nullptr},
                       kKey,
                       2,
                       DrawMethod::distinct,
                       nullptr,
                       exclude.data(),
                       4,
                       5};
  std::vector<int64_t> ids(2);
  RowSampler sampler(draws);
  CHECK_THROWS("exclude leaves row 0 only 1 classes of positive probability, 2 are needed",
               sampler.draw(0, ids.data()));
  sampler.draw(1, ids.data());
  CHECK(ids[0] != ids[1] && ids[0] != 4 && ids[1] != 4);
}

}  // namespace ssc::test
