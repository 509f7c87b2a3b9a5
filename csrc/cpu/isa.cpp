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
    case Isa::avx512_bf16:
      return "avx512_bf16";
  }
  return "unknown";
}

namespace {

bool cpu_has(Isa isa) {
  if (isa == Isa::scalar) return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (isa == Isa::avx2) return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
  if (isa == Isa::avx512) return avx512;
  return avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

Isa best_isa() {
  Isa best = Isa::scalar;
  for (const Isa isa : kIsas) {
    if (isa_available(isa) && !isa_emulated(isa)) best = isa;
  }
  return best;
}

}  // namespace

bool isa_emulated(Isa isa) {
#if defined(SSC_EMULATE_BF16)
  return isa == Isa::avx512_bf16 && cpu_has(Isa::avx512);
#else
  static_cast<void>(isa);
  return false;
#endif
}

bool isa_available(Isa isa) { return cpu_has(isa) || isa_emulated(isa); }

Isa active_isa() {
  const char* name = std::getenv("SSC_CPU_ISA");
  if (name == nullptr || *name == '\0') {
    static const Isa best = best_isa();
    return best;
  }
  for (const Isa isa : kIsas) {
    if (std::string(name) != isa_name(isa)) continue;
    if (isa_available(isa)) return isa;
    throw std::runtime_error(std::string("SSC_CPU_ISA=") + name + ": this CPU does not run it");
  }
  throw std::runtime_error(std::string("SSC_CPU_ISA=") + name +
                           ": expected scalar, avx2, avx512 or avx512_bf16");
}

}  // namespace ssc
