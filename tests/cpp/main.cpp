// Runs the TESTs of one program. Exit status: 0 passed, 1 failed, 77 this CPU lacks the instruction
// set that SSC_CPU_ISA names (ctest reports the program as skipped).
#include <cstring>

#include "csrc/cpu/base/isa.h"
#include "tests/cpp/check.h"

namespace {

constexpr int kSkipped = 77;

bool wanted_isa_is_missing() {
  const char* wanted = std::getenv("SSC_CPU_ISA");
  if (wanted == nullptr) return false;
  for (const ssc::Isa isa : ssc::kIsas) {
    if (std::strcmp(wanted, ssc::isa_name(isa)) == 0) return !ssc::isa_available(isa);
  }
  return false;
}

}  // namespace

int main() {
  if (wanted_isa_is_missing()) {
    std::cout << "skipped: no " << std::getenv("SSC_CPU_ISA") << " here\n";
    return kSkipped;
  }
  std::cout << "instruction set: " << ssc::isa_name(ssc::active_isa()) << "\n";
  for (const ssc::test::Case& test : ssc::test::cases()) {
    const int before = ssc::test::failures();
    try {
      test.run();
    } catch (const std::exception& error) {
      ssc::test::fail(test.name, 0, "threw ", error.what());
    }
    std::cout << (ssc::test::failures() == before ? "ok   " : "FAIL ") << test.name << std::endl;
  }
  if (ssc::test::failures() > 0) std::cerr << ssc::test::failures() << " checks failed\n";
  return ssc::test::failures() == 0 ? 0 : 1;
}
