#include "csrc/cpu/isa.h"
#include "csrc/cpu/parallel.h"
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

TEST(an_empty_variable_means_the_best) {
  const Environment environment("");
  CHECK(ssc::isa_available(ssc::active_isa()));
  for (const ssc::Isa isa : ssc::kIsas) {
    CHECK(!ssc::isa_available(isa) || ssc::isa_emulated(isa) || isa <= ssc::active_isa());
  }
}

TEST(an_unknown_name_is_refused) {
  const Environment environment("sse9");
  CHECK_THROWS("expected scalar, avx2, avx512 or avx512_bf16", ssc::active_isa());
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
