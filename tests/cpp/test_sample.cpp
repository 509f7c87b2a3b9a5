#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <thread>

#include "csrc/core/portable_math.h"
#include "csrc/core/uniform.h"
#include "csrc/cpu/sample/alias_table.h"
#include "csrc/cpu/sample/sample.h"
#include "csrc/cpu/sample/table.h"
#include "tests/cpp/check.h"

namespace {

using ssc::LogUniform;
using ssc::PhiloxKey;
using ssc::Proposal;
using ssc::ProposalKind;
using ssc::ScalarLane;

constexpr PhiloxKey kKey{0x9e3779b97f4a7c15, 42};

Proposal uniform(uint64_t num_classes) {
  return {ProposalKind::uniform, num_classes, {}, {}, nullptr};
}
Proposal log_uniform(uint64_t num_classes) {
  return {ProposalKind::log_uniform, num_classes, ssc::make_log_uniform(num_classes), {}, nullptr};
}

struct Weighted {
  std::vector<double> probabilities;
  std::vector<uint64_t> entries;

  explicit Weighted(std::vector<double> weights,
                    const ssc::ParallelFor& parallel_for = ssc::serial())
      : probabilities(std::move(weights)), entries(probabilities.size()) {
    // One class gets the part that is missing from a sum of 1: there must be little of it.
    const auto sum =
        static_cast<double>(std::accumulate(probabilities.begin(), probabilities.end(), 0.0L));
    for (double& p : probabilities) p /= sum;
    ssc::Workspace workspace;
    ssc::build_alias_table(probabilities.data(), probabilities.size(), entries.data(), workspace,
                           parallel_for);
  }
  Proposal proposal() const {
    return {ProposalKind::weighted,
            entries.size(),
            {},
            ssc::make_alias_table(entries.data(), entries.size()),
            probabilities.data()};
  }
  // Each class's probability by the table, summed in units of 2^-64 of C buckets.
  std::vector<double> implied() const {
    const int bits = ssc::alias_bits(entries.size());
    const uint64_t mask = (uint64_t{1} << bits) - 1;
    std::vector<long double> units(entries.size());
    for (size_t i = 0; i < entries.size(); ++i) {
      const auto own = static_cast<long double>(entries[i] & ~mask);
      units[i] += own;
      units[entries[i] & mask] += 0x1p64L - own;
    }
    std::vector<double> result;
    for (const long double u : units) {
      result.push_back(static_cast<double>(u / 0x1p64L / static_cast<long double>(units.size())));
    }
    return result;
  }
};

std::vector<double> zipf(size_t n, double power) {
  std::vector<double> weights(n);
  for (size_t k = 0; k < n; ++k) weights[k] = std::pow(static_cast<double>(k + 1), -power);
  return weights;
}

// Threads that take pieces of odd sizes, so that a body may not rely on how [0, n) is cut.
ssc::ParallelFor threads() {
  return {[](int64_t n, int64_t, ssc::ParallelFor::Body body, void* context) {
            std::vector<std::thread> pool;
            for (int64_t begin = 0; begin < n; begin += n / 3 + 1) {
              const int64_t end = std::min(n, begin + n / 3 + 1);
              pool.emplace_back([=] { body(context, begin, end); });
            }
            for (std::thread& thread : pool) thread.join();
          },
          4};
}

}  // namespace

TEST(portable_math_agrees_with_libm) {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> exponent(-700, 700), unit(0, 1);
  for (int i = 0; i < 20000; ++i) {
    const double x = std::exp(exponent(random));
    CHECK_CLOSE(ssc::portable_log<ScalarLane>(x), std::log(x), 0.0, 1e-15);
    const double near_one = 1 + (unit(random) - 0.5) * 1e-3;
    CHECK_CLOSE(ssc::portable_log<ScalarLane>(near_one), std::log(near_one), 0.0, 1e-15);
    const double small = std::exp(-700 * unit(random));
    for (const double y : {small, -small, 2 * unit(random) - 1, unit(random) - 1}) {
      CHECK_CLOSE(ssc::portable_log1p<ScalarLane>(y), std::log1p(y), 0.0, 1e-15);
    }
    for (const double y : {-small, -unit(random), -80 * unit(random)}) {
      CHECK_CLOSE(ssc::portable_expm1<ScalarLane>(y), std::expm1(y), 0.0, 1e-15);
    }
  }
  CHECK_EQ(ssc::portable_log<ScalarLane>(1.0), 0.0);
  CHECK_EQ(ssc::portable_expm1<ScalarLane>(-std::numeric_limits<double>::infinity()), -1.0);
}

TEST(the_fixed_point_logarithm_is_exact) {
  for (int bit = 0; bit < 52; ++bit) {
    CHECK_EQ(ssc::log2_fixed(uint64_t{1} << bit), static_cast<uint64_t>(bit) << 58);
  }
  for (const uint64_t n : {3ull, 5ull, 1000001ull, (1ull << 40) - 1, (1ull << 52) - 1}) {
    CHECK_CLOSE(static_cast<double>(ssc::log2_fixed(n)) * 0x1p-58,
                std::log2(static_cast<double>(n)), 0.0, 3e-16);
  }
}

TEST(bounded_integers_are_the_high_half_of_the_product) {
  for (const uint64_t classes : {uint64_t{1}, uint64_t{3}, uint64_t{1} << 31, uint64_t{0xffffffff},
                                 (uint64_t{1} << 40) + 7}) {
    CHECK_EQ((ssc::uniform_id<ScalarLane, false>(0, classes)), 0u);
    CHECK_EQ((ssc::uniform_id<ScalarLane, false>(~uint64_t{0}, classes)), classes - 1);
  }
}

TEST(log_uniform_reaches_both_ends_and_nothing_beyond) {
  for (const uint64_t classes :
       {uint64_t{1}, uint64_t{2}, uint64_t{3}, uint64_t{1000000}, (uint64_t{1} << 24) - 1,
        (uint64_t{1} << 24) + 3, (uint64_t{1} << 31) + 5, uint64_t{1} << 40,
        ssc::kLogUniformMaxClasses}) {
    const LogUniform p = ssc::make_log_uniform(classes);
    const ssc::test::Note note("C = " + std::to_string(classes));
    CHECK_EQ(ssc::log_uniform_id<ScalarLane>(0, p, ssc::kExp2Table), 0u);
    CHECK_EQ(ssc::log_uniform_id<ScalarLane>(~uint64_t{0}, p, ssc::kExp2Table), classes - 1);
  }
}

// The ids are monotone in the bits, so the number of bit patterns that give ids <= k can be found
// by bisection: it must be 2^64 log(k + 2) / log(C + 1).
TEST(log_uniform_boundaries_are_where_the_distribution_says) {
  for (const uint64_t classes :
       {uint64_t{1}, uint64_t{2}, uint64_t{10}, uint64_t{1000000}, uint64_t{1} << 40}) {
    const LogUniform p = ssc::make_log_uniform(classes);
    for (uint64_t k = 0; k + 1 < classes; k = k * 3 + 1) {
      uint64_t low = 0, high = ~uint64_t{0};  // the first pattern with an id > k
      while (low < high) {
        const uint64_t middle = low + (high - low) / 2;
        if (ssc::log_uniform_id<ScalarLane>(middle, p, ssc::kExp2Table) > k) {
          high = middle;
        } else {
          low = middle + 1;
        }
      }
      const double expected = static_cast<double>(std::log2(static_cast<long double>(k + 2)) /
                                                  std::log2(static_cast<long double>(classes + 1)));
      CHECK_CLOSE(static_cast<double>(low) * 0x1p-64, expected, 0.0, 5e-16);
    }
  }
}

TEST(kernels_map_bits_as_the_scalar_functions_do) {
  const ssc::SampleKernels& kernels = ssc::sample_kernels(ssc::active_isa());
  constexpr int64_t n = 1003;  // a tail for every vector width
  std::vector<uint64_t> bits(n);
  kernels.philox(kKey, 0, n, bits.data());
  bits[0] = 0;
  bits[1] = ~uint64_t{0};
  std::vector<int64_t> ids(n);
  std::vector<double> q(n), times(n);
  std::vector<float> counts(n);
  for (const uint64_t classes :
       {uint64_t{1}, uint64_t{7}, uint64_t{0xffffffff}, uint64_t{0x100000000}, uint64_t{1} << 40}) {
    const ssc::test::Note note("C = " + std::to_string(classes));
    kernels.uniform(bits.data(), n, classes, ids.data());
    for (int64_t i = 0; i < n; ++i) {
      CHECK_EQ(static_cast<uint64_t>(ids[i]),
               (ssc::uniform_id<ScalarLane, false>(bits[i], classes)));
    }
    const LogUniform p = ssc::make_log_uniform(classes);
    kernels.log_uniform(bits.data(), n, p, ids.data());
    kernels.log_uniform_probability(ids.data(), n, p, q.data());
    kernels.arrival_time(bits.data(), q.data(), n, times.data());
    for (int64_t i = 0; i < n; ++i) {
      const auto id = static_cast<uint64_t>(ids[i]);
      CHECK_EQ(id, ssc::log_uniform_id<ScalarLane>(bits[i], p, ssc::kExp2Table));
      CHECK_EQ(q[i], ssc::log_uniform_probability<ScalarLane>(id, p));
      CHECK_EQ(times[i], ssc::arrival_time<ScalarLane>(bits[i], q[i]));
    }
    for (const ssc::LogCount& count :
         {ssc::log_count_with_replacement(100), ssc::log_count_distinct(1e3),
          ssc::log_count_distinct(std::numeric_limits<double>::infinity())}) {
      q[5] = 0.0;
      kernels.log_expected_count(q.data(), n, count, counts.data());
      CHECK_EQ(counts[5], -std::numeric_limits<float>::infinity());
      for (int64_t i = 0; i < n; ++i) {
        CHECK_EQ(counts[i], static_cast<float>(ssc::log_expected_count<ScalarLane>(q[i], count)));
      }
    }
  }
}

TEST(the_alias_table_implies_the_weights) {
  const std::vector<std::vector<double>> cases = {
      {1},
      {0, 1},
      {1, 0, 0, 0},
      {3, 1},
      {1, 1, 1, 1, 1, 1, 1},
      {1e-300, 1, 1e-30, 0, 5},
      zipf(1000, 1.0),
      zipf(4096, 3.0),
      zipf(100003, 0.75),
  };
  for (const std::vector<double>& weights : cases) {
    const Weighted weighted(weights);
    const ssc::test::Note note("C = " + std::to_string(weights.size()));
    const std::vector<double> implied = weighted.implied();
    for (size_t k = 0; k < weights.size(); ++k) {
      CHECK_CLOSE(implied[k], weighted.probabilities[k], 1e-17, 1e-12);
      if (weights[k] == 0) CHECK_EQ(implied[k], 0.0);
      if (weights[k] > 0) CHECK(implied[k] > 0.0);
    }
  }
}

TEST(the_alias_table_does_not_depend_on_threads) {
  // Chunks of 2^14 classes: many of them, one and a bit, and weights whose small and large classes
  // lie together, far apart, or are of one kind only but for a class.
  std::vector<std::vector<double>> cases = {zipf(16385, 1.0), zipf(200003, 0.75)};
  std::vector<double> mixed(150001), falling(mixed.size(), 0.1), flat(mixed.size(), 1.0);
  std::mt19937_64 random(3);
  for (double& w : mixed) w = static_cast<double>(random() % 5);
  for (size_t k = 0; k < falling.size() / 3; ++k) falling[falling.size() - 1 - k] = 1.0;
  flat[70000] = 0.25;  // lacks what thousands of classes have to spare
  cases.insert(cases.end(), {mixed, falling, flat, std::vector<double>(40000, 1.0)});
  for (const std::vector<double>& weights : cases) {
    const Weighted one(weights), many(weights, threads());
    CHECK(one.entries == many.entries);
    const std::vector<double> implied = many.implied();
    for (size_t k = 0; k < weights.size(); ++k) {
      CHECK_CLOSE(implied[k], many.probabilities[k], 2.3e-16, 1e-12);  // one class: 2^-52 of all
    }
  }
}

TEST(the_alias_table_of_what_are_no_probabilities_stays_within_its_classes) {
  ssc::Workspace workspace;
  for (const double scale : {0.0, 1e-3, 0.5, 1.5}) {
    std::vector<double> wrong = zipf(40000, 1.0);
    for (double& p : wrong) p *= scale / 11.0;
    std::vector<uint64_t> entries(wrong.size());
    ssc::build_alias_table(wrong.data(), wrong.size(), entries.data(), workspace, threads());
    const uint64_t mask = (uint64_t{1} << ssc::alias_bits(entries.size())) - 1;
    for (const uint64_t entry : entries) CHECK((entry & mask) < entries.size());
  }
}

TEST(draws_do_not_depend_on_threads) {
  const Weighted weighted(zipf(5000, 1.0));
  constexpr int64_t n = 100001;
  for (const Proposal& proposal :
       {uniform(5000), log_uniform((uint64_t{1} << 31) + 5), weighted.proposal()}) {
    std::vector<int64_t> one(n), many(n);
    ssc::sample_with_replacement(proposal, kKey, n, one.data(), ssc::serial());
    ssc::sample_with_replacement(proposal, kKey, n, many.data(), threads());
    CHECK(one == many);
    std::vector<float> counts(n), counts_many(n);
    const ssc::LogCount count = ssc::log_count_distinct(123.0);
    ssc::log_expected_counts(proposal, one.data(), n, count, counts.data(), ssc::serial());
    ssc::log_expected_counts(proposal, one.data(), n, count, counts_many.data(), threads());
    CHECK(counts == counts_many);
  }
}

TEST(distinct_draws_are_the_first_distinct_ids_of_the_stream) {
  const Weighted weighted(zipf(300, 1.0));
  for (const Proposal& proposal : {uniform(300), log_uniform(300), weighted.proposal()}) {
    for (const int64_t samples : {1, 7, 150, 280}) {
      std::vector<int64_t> ids(samples), stream(200000), expected;
      const int64_t draws = ssc::sample_distinct(proposal, kKey, samples, ids.data());
      ssc::sample_with_replacement(proposal, kKey, 200000, stream.data(), ssc::serial());
      std::set<int64_t> seen;
      int64_t expected_draws = 0;
      for (; seen.size() < static_cast<size_t>(samples); ++expected_draws) {
        if (seen.insert(stream[expected_draws]).second) expected.push_back(stream[expected_draws]);
      }
      CHECK(ids == expected);
      CHECK_EQ(draws, expected_draws);
    }
  }
}

TEST(a_race_draws_distinct_classes_of_positive_weight) {
  Weighted weighted({5, 0, 1, 1e-9, 0, 3});
  std::vector<int64_t> ids(4), again(4);
  const int64_t draws = ssc::sample_race(weighted.proposal(), kKey, 4, ids.data(), ssc::serial());
  CHECK(draws >= 4);
  CHECK((std::set<int64_t>(ids.begin(), ids.end()) == std::set<int64_t>{0, 2, 3, 5}));
  ssc::sample_race(weighted.proposal(), kKey, 4, again.data(), threads());
  CHECK(ids == again);
}

TEST(a_hopeless_rejection_stops) {
  const Weighted weighted({1, 0});
  std::vector<int64_t> ids(2);
  CHECK_THROWS("2 distinct classes",
               ssc::sample_distinct(weighted.proposal(), kKey, 2, ids.data()));
}

TEST(ids_out_of_range_get_no_correction) {
  const Weighted weighted({1, 2, 3});
  const std::vector<int64_t> ids = {-100, 3, std::numeric_limits<int64_t>::max(), 1};
  std::vector<float> counts(4);
  for (const Proposal& proposal : {uniform(3), log_uniform(3), weighted.proposal()}) {
    ssc::log_expected_counts(proposal, ids.data(), 4, ssc::log_count_with_replacement(10),
                             counts.data(), ssc::serial());
    for (int i = 0; i < 3; ++i) CHECK_EQ(counts[i], 0.0f);
    CHECK(counts[3] != 0.0f);
  }
}
