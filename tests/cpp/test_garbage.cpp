// Tables and probabilities that are none, as memory that was never filled holds them: draws give
// classes or throw, and end. The sanitizers see that nothing else is touched.
#include <limits>
#include <random>
#include <set>

#include "csrc/cpu/per_row/per_row.h"
#include "csrc/cpu/sample/alias_table.h"
#include "csrc/cpu/sample/rows.h"
#include "csrc/cpu/sample/sample.h"
#include "tests/cpp/check.h"
#include "tests/cpp/loss_problem.h"

namespace ssc::test {
namespace {

constexpr PhiloxKey kKey{0x9e3779b97f4a7c15, 42};
constexpr int64_t kRows = 3, kDim = 5, kSamples = 21;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

enum class Entries { random, all_ones, largest, first_class, good };

std::vector<uint64_t> make_entries(Entries what, size_t classes) {
  std::mt19937_64 engine(7);
  std::vector<uint64_t> entries(classes);
  for (uint64_t& entry : entries) {
    entry = what == Entries::random     ? engine()
            : what == Entries::all_ones ? ~uint64_t{0}
            : what == Entries::largest  ? ~uint64_t{0} >> 1
                                        : 0;
  }
  if (what == Entries::good) {
    const std::vector<double> even(classes, 1.0 / static_cast<double>(classes));
    Workspace workspace;
    build_alias_table(even.data(), classes, entries.data(), workspace, serial());
  }
  return entries;
}

struct Garbage {
  Garbage(Entries what, double q, size_t classes = 33)
      : entries(make_entries(what, classes)), probabilities(classes, q) {}

  Proposal proposal() const {
    return {ProposalKind::weighted,
            entries.size(),
            {},
            make_alias_table(entries.data(), entries.size()),
            probabilities.data()};
  }
  RowDraws draws(DrawMethod method, const std::vector<int64_t>* exclude = nullptr) const {
    return {proposal(),
            kKey,
            kSamples,
            method,
            nullptr,
            exclude == nullptr ? nullptr : exclude->data(),
            exclude == nullptr ? 0 : static_cast<int64_t>(exclude->size()) / kRows,
            entries.size()};
  }

  // Exact in size, so that a read behind the last class is seen.
  std::vector<uint64_t> entries;
  std::vector<double> probabilities;
};

constexpr double kEven = 1.0 / 33;
constexpr double kNoProbabilities[] = {kNan, -2.0, -kInfinity, kInfinity, 1e300, -0.0, 0.0, 5e-324};

// Whether all ids are classes of the table.
bool inside(const std::vector<int64_t>& ids, const Garbage& garbage) {
  for (const int64_t id : ids) {
    if (static_cast<uint64_t>(id) >= garbage.entries.size()) return false;
  }
  return true;
}

// True if `draw` throws or fills ids with classes.
template <class F>
bool gives_classes(const Garbage& garbage, std::vector<int64_t>& ids, F&& draw) {
  try {
    draw();
  } catch (const std::runtime_error&) {
    return true;
  }
  return inside(ids, garbage);
}

TEST(a_table_that_points_outside_is_refused) {
  for (const size_t classes : {size_t{1}, size_t{2}, size_t{31}, size_t{33}, size_t{4000}}) {
    const Garbage garbage(Entries::largest, kEven, classes);
    for (const int64_t samples : {1, 7, 512, 700}) {
      Note note("C=" + std::to_string(classes) + " S=" + std::to_string(samples));
      std::vector<int64_t> ids(static_cast<size_t>(samples));
      const auto draw = [&] {
        sample_with_replacement(garbage.proposal(), kKey, samples, ids.data(), serial());
      };
      if (samples >= 512) CHECK_THROWS("the alias table is not valid", draw());
      CHECK(gives_classes(garbage, ids, draw));
    }
  }
}

TEST(draws_from_any_memory_are_classes_or_throw) {
  for (const Entries what :
       {Entries::random, Entries::all_ones, Entries::largest, Entries::first_class}) {
    const Garbage garbage(what, kEven);
    for (uint64_t seed = 0; seed < 20; ++seed) {
      const PhiloxKey key{seed, seed << 40};
      std::vector<int64_t> ids(kSamples);
      CHECK(gives_classes(garbage, ids, [&] {
        sample_with_replacement(garbage.proposal(), key, kSamples, ids.data(), serial());
      }));
      CHECK(gives_classes(garbage, ids,
                          [&] { sample_distinct(garbage.proposal(), key, kSamples, ids.data()); }));
    }
  }
}

TEST(a_table_of_one_class_ends) {
  const Garbage garbage(Entries::first_class, kEven);
  std::vector<int64_t> ids(kSamples);
  CHECK_THROWS("distinct classes were not found",
               sample_distinct(garbage.proposal(), kKey, kSamples, ids.data()));
  // Each row excludes the only class that ever comes.
  const std::vector<int64_t> exclude(kRows, 0);
  for (const DrawMethod method : {DrawMethod::with_replacement, DrawMethod::distinct}) {
    const RowDraws draws = garbage.draws(method, &exclude);
    RowSampler sampler(draws);
    CHECK_THROWS("by their probabilities", sampler.draw(0, ids.data()));
  }
}

TEST(a_race_takes_any_probabilities) {
  for (const double q : kNoProbabilities) {
    Garbage garbage(Entries::good, q);
    for (const bool mixed : {false, true}) {
      Note note("q=" + std::to_string(q) + (mixed ? " mixed" : ""));
      for (size_t k = 0; mixed && k < garbage.probabilities.size(); k += 2) {
        garbage.probabilities[k] = kEven;
      }
      std::vector<int64_t> ids(kSamples);
      CHECK(sample_race(garbage.proposal(), kKey, kSamples, ids.data(), serial()) >= kSamples);
      CHECK(inside(ids, garbage));
      CHECK_EQ(std::set<int64_t>(ids.begin(), ids.end()).size(), ids.size());
    }
  }
}

TEST(log_counts_of_what_is_no_probability_are_nan) {
  std::vector<int64_t> ids = {0, 32, 33, -1};
  std::vector<float> out(ids.size());
  for (const LogCount& plain : {log_count_with_replacement(7), log_count_distinct(9.5)}) {
    for (const double q : kNoProbabilities) {
      const Garbage garbage(Entries::good, q);
      for (const LogCount& count : {plain, as_correction(plain)}) {
        Note note("q=" + std::to_string(q));
        log_expected_counts(garbage.proposal(), ids.data(), 4, count, out.data(), serial());
        if (q == 0.0) CHECK_EQ(static_cast<double>(out[0]), count.log_zero);
        if (!(q >= 0.0 && q <= 1.0)) CHECK(std::isnan(out[0]) && std::isnan(out[1]));
        CHECK(out[2] == 0.0f && out[3] == 0.0f);
      }
    }
  }
}

TEST(rows_drawn_from_any_memory_are_classes_or_throw) {
  const std::vector<int64_t> exclude = {3, -1, 3, 33, 2, std::numeric_limits<int64_t>::max(),
                                        0, 1,  2};
  for (const Entries what : {Entries::random, Entries::all_ones, Entries::largest, Entries::good}) {
    for (const double q : {kEven, kNan, -1.0, kInfinity}) {
      const Garbage garbage(what, q);
      for (const auto method :
           {DrawMethod::with_replacement, DrawMethod::distinct, DrawMethod::race}) {
        for (const bool listed : {false, true}) {
          const RowDraws draws = garbage.draws(method, listed ? &exclude : nullptr);
          RowSampler sampler(draws);
          for (int64_t row = 0; row < kRows; ++row) {
            std::vector<int64_t> ids(kSamples);
            std::vector<float> counts(kSamples);
            CHECK(gives_classes(garbage, ids, [&] {
              sampler.draw(row, ids.data());
              sampler.log_counts(ids.data(), kSamples, counts.data());
            }));
          }
        }
      }
    }
  }
}

// A loss over rows of W that end with the last class.
TEST(losses_drawn_from_any_memory_touch_rows_of_w_only) {
  Matrix input(kRows, kDim, kDim, DType::f32), weight(33, kDim, kDim, DType::f32);
  input.fill(0.5);
  weight.fill(0.25);
  const std::vector<float> target_logit(kRows, 0.5f), row_scale(kRows, 1.0f);
  const std::vector<int64_t> hits(kRows, -1);
  for (const Entries what : {Entries::random, Entries::largest, Entries::good}) {
    const Garbage garbage(what, kEven);
    for (const auto method :
         {DrawMethod::with_replacement, DrawMethod::distinct, DrawMethod::race}) {
      const RowDraws draws = garbage.draws(method);
      PerRowProblem<float> p{};
      p.input = input.view();
      p.weight = weight.view();
      p.bias = {nullptr, DType::f32};
      p.target_logit = target_logit.data();
      p.hits = hits.data();
      p.num_hits = 1;
      p.samples = {nullptr, {nullptr, DType::f32}, &draws, true, kSamples};
      p.batch = kRows;
      p.dim = kDim;
      p.classes = 33;
      p.inv_temperature = 1;
      std::vector<float> loss(kRows), peak(kRows);
      Matrix grad_input(kRows, kDim, kDim, DType::f32), grad(33, kDim, kDim, DType::f32);
      grad_input.fill(0);
      grad.fill(0);
      const PerRowGradients<float> gradients = {row_scale.data(),
                                                grad_input.view(),
                                                grad.view(),
                                                {nullptr, DType::f32},
                                                nullptr,
                                                33,
                                                false};
      const auto run = [&] {
        per_row_loss<float>(p, loss.data(), peak.data(), serial());
        touched_classes<float>(p, serial());
        per_row_grads<float>(p, gradients, serial());
      };
      // A race reads no table.
      if (what == Entries::good || method == DrawMethod::race) {
        run();
        for (const float x : loss) CHECK(std::isfinite(x));
      } else {
        CHECK_THROWS("the alias table is not valid", run());
      }
    }
  }
}

}  // namespace
}  // namespace ssc::test
