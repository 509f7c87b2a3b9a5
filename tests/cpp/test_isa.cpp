#include "csrc/cpu/base/isa.h"
#include "csrc/cpu/base/parallel.h"
#include "tests/cpp/check.h"

namespace {

// Sets SSC_CPU_ISA for a scope.
class Environment {
 public:
  explicit Environment(const char* value) {
    const char* before = std::getenv("SSC_CPU_ISA");
    if (before != nullptr) before_ = before;
    setenv("SSC_CPU_ISA", value, 1);
  }
  ~Environment() { setenv("SSC_CPU_ISA", before_.c_str(), 1); }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  std::string before_;
};

}  // namespace

TEST(the_variable_chooses) {
  for (const ssc::Isa isa : ssc::kIsas) {
    const Environment environment(ssc::isa_name(isa));
    if (ssc::isa_available(isa)) {
      CHECK_EQ(ssc::isa_name(ssc::active_isa()), std::string(ssc::isa_name(isa)));
    } else {
      CHECK_THROWS("does not run it", ssc::active_isa());
    }
  }
}

TEST(a_named_one_serves_any_number_of_rows) {
  for (const ssc::Isa isa : ssc::kIsas) {
    if (!ssc::isa_available(isa)) continue;
    const Environment environment(ssc::isa_name(isa));
    for (const int64_t rows : {0, 1, 1000}) CHECK(ssc::active_isa(rows) == isa);
  }
}

TEST(an_empty_variable_means_the_fastest) {
  const Environment environment("");
  const ssc::IsaChoice choice = ssc::isa_choice();
  CHECK(ssc::isa_available(choice.isa) && !ssc::isa_emulated(choice.isa));
  for (const ssc::Isa isa : ssc::kIsas) {
    const bool rivals = ssc::isa_available(isa) && !ssc::isa_emulated(isa);
    CHECK(!rivals || isa <= choice.isa || (isa == ssc::Isa::avx512_bf16 && choice.pair_rows > 0));
  }
}

// Which one multiplies bf16 with bf16 in a call with so many rows.
ssc::Isa of_pairs(const ssc::Processor& processor, int64_t rows) {
  const ssc::IsaChoice choice = ssc::fastest_isa(processor);
  CHECK(choice.reason[0] != '\0');
  return ssc::isa_for(choice, rows);
}

TEST(the_best_where_more_is_faster) {
  using ssc::Isa;
  const struct {
    ssc::Processor processor;
    Isa best;
  } known[] = {
      {{.intel = true}, Isa::scalar},
      {{.intel = true, .avx2 = true}, Isa::avx2},                    // Haswell
      {{.intel = true, .avx2 = true, .avx_vnni = true}, Isa::avx2},  // Alder Lake
      {{.intel = true, .avx2 = true, .avx512 = true}, Isa::avx512},  // Skylake-X, Ice Lake
      {{.avx2 = true}, Isa::avx2},                                   // Zen 3
      {{.avx2 = true, .avx512 = true, .avx512_bf16 = true}, Isa::avx512_bf16},  // Zen 4
      {{.avx2 = true, .avx512 = true, .avx512_bf16 = true, .avx_vnni = true},
       Isa::avx512_bf16},  // Zen 5
      {{.intel = true, .avx2 = true, .avx512 = true, .avx512_bf16 = true},
       Isa::avx512_bf16},  // Cooper Lake
  };
  for (const auto& [processor, best] : known) {
    for (const int64_t rows : {0, 1, 5, 512}) {
      CHECK_EQ(ssc::isa_name(of_pairs(processor, rows)), std::string(ssc::isa_name(best)));
    }
  }
}

TEST(intels_slow_pairs_serve_few_rows) {
  const ssc::Processor base = {.intel = true, .avx2 = true, .avx512 = true, .avx512_bf16 = true};
  // Sapphire, Emerald and Granite Rapids have all three; a hypervisor may show only one.
  for (bool ssc::Processor::* const mark :
       {&ssc::Processor::avx_vnni, &ssc::Processor::avx512_fp16, &ssc::Processor::amx_bf16}) {
    ssc::Processor processor = base;
    processor.*mark = true;
    CHECK_EQ(ssc::isa_name(ssc::fastest_isa(processor).isa), std::string("avx512"));
    CHECK(of_pairs(processor, 1) == ssc::Isa::avx512_bf16);
    CHECK(of_pairs(processor, 4) == ssc::Isa::avx512_bf16);
    CHECK(of_pairs(processor, 5) == ssc::Isa::avx512);
    processor.avx512_bf16 = false;
    CHECK(of_pairs(processor, 1) == ssc::Isa::avx512);
    processor.intel = false;
    processor.avx512_bf16 = true;
    CHECK(of_pairs(processor, 512) == ssc::Isa::avx512_bf16);
  }
}

TEST(tiles_serve_all_but_few_rows_where_they_are_granted) {
  using ssc::Isa;
  ssc::Processor processor = {.intel = true, .avx2 = true, .avx512 = true, .avx512_bf16 = true};
  processor.amx_bf16 = processor.tiles_granted = true;
  CHECK(ssc::fastest_isa(processor).isa == Isa::amx_bf16);
  CHECK(of_pairs(processor, 1) == Isa::avx512_bf16);
  CHECK(of_pairs(processor, 512) == Isa::amx_bf16);
  processor.tiles_granted = false;
  CHECK(of_pairs(processor, 512) == Isa::avx512);
  processor.tiles_granted = true;
  processor.avx512_bf16 = false;  // as a hypervisor may show it
  CHECK(of_pairs(processor, 512) == Isa::avx512);
}

TEST(an_unknown_name_is_refused) {
  const Environment environment("sse9");
  CHECK_THROWS("expected scalar, avx2, avx512, avx512_bf16 or amx_bf16", ssc::active_isa());
}

TEST(serial_runs_everything_once_and_nothing_for_nothing) {
  int64_t calls = 0;
  ssc::serial()(10, 3, [&](int64_t begin, int64_t end) {
    ++calls;
    CHECK_EQ(begin, 0);
    CHECK_EQ(end, 10);
  });
  CHECK_EQ(calls, 1);
  ssc::serial()(0, 3, [&](int64_t, int64_t) { ++calls; });
  CHECK_EQ(calls, 1);
}
