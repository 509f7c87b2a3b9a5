#include "csrc/cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace ssc {

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return "scalar";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
  }
  return "unknown";
}

bool isa_available(Isa isa) {
  if (isa == Isa::scalar) return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (isa == Isa::avx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512cd");
#else
  return false;
#endif
}

namespace {

Isa best_isa() {
  if (isa_available(Isa::avx512)) return Isa::avx512;
  return isa_available(Isa::avx2) ? Isa::avx2 : Isa::scalar;
}

}  // namespace

Isa active_isa() {
  const char* name = std::getenv("SSC_CPU_ISA");
  if (name == nullptr || *name == '\0') {
    static const Isa best = best_isa();
    return best;
  }
  for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512}) {
    if (std::string(name) != isa_name(isa)) continue;
    if (isa_available(isa)) return isa;
    throw std::runtime_error(std::string("SSC_CPU_ISA=") + name + ": this CPU does not run it");
  }
  throw std::runtime_error(std::string("SSC_CPU_ISA=") + name +
                           ": expected scalar, avx2 or avx512");
}

}  // namespace ssc
