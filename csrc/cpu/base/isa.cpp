#include "csrc/cpu/base/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

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
    case Isa::amx_bf16:
      return "amx_bf16";
  }
  return "unknown";
}

namespace {

// Intel's cores from Golden Cove on (Sapphire, Emerald and Granite Rapids) start a vdpbf16ps every
// other cycle and two vfmadd231ps in each, so pairs do half of float32's work in the same time. With
// few rows packing W is most of the work, and the pairs' is half as long: on a Xeon with AMX they
// took 0.64 to 0.98 of avx512's time up to 4 rows, 0.9 to 1.05 at 6, 1.15 at 16 and 1.7 at 512.
constexpr int64_t kFewRows = 4;

// A tile has 16 rows, whether they are there or not. On a Xeon with AMX pairs took 0.87 to 1.0 of the
// tiles' time up to 2 rows, 1.0 to 1.1 at 4, 1.05 to 1.5 at 8.
constexpr int64_t kFewRowsOfTiles = 2;

// A virtual machine may hide any of these from its guests, hardly all of them and not AVX512-BF16.
bool pairs_are_slow(const Processor& p) {
  return p.intel && (p.avx_vnni || p.avx512_fp16 || p.amx_bf16);
}

#if defined(__x86_64__)

// Asks for the tiles' registers, for every thread of this process. A kernel that knows no AMX, or
// was told to hide it, refuses.
[[maybe_unused]] bool ask_for_tiles() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Processor read_processor() {
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAvx512Fp16 = 1u << 23;  // EDX
  constexpr unsigned kAvxVnni = 1u << 4;  // CPUID 7.1, EAX
  __builtin_cpu_init();
  Processor p{};
  p.intel = __builtin_cpu_is("intel");
  p.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
  p.avx512 = p.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512cd");
  p.avx512_bf16 = p.avx512 && __builtin_cpu_supports("avx512bf16");
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;  // older compilers don't know these by name
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) {
    p.amx_bf16 = (edx & kAmxBf16) && (edx & kAmxTile);
    p.avx512_fp16 = edx & kAvx512Fp16;
  }
  if (__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) p.avx_vnni = eax & kAvxVnni;
#if !defined(SSC_EMULATE_AMX)
  p.tiles_granted = p.amx_bf16 && ask_for_tiles();
#endif
  return p;
}

#else

Processor read_processor() { return {}; }

#endif

const Processor& this_processor() {
  static const Processor processor = read_processor();
  return processor;
}

bool has(const Processor& p, Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return true;
    case Isa::avx2:
      return p.avx2;
    case Isa::avx512:
      return p.avx512;
    case Isa::avx512_bf16:
      return p.avx512_bf16;
    case Isa::amx_bf16:
      return p.avx512_bf16 && p.amx_bf16 && p.tiles_granted;
  }
  return false;
}

}  // namespace

IsaChoice fastest_isa(const Processor& processor) {
  if (has(processor, Isa::amx_bf16)) {
    return {Isa::amx_bf16, kFewRowsOfTiles,
            "this processor multiplies bfloat16 in tiles (AMX), and a few rows in pairs"};
  }
  if (processor.avx512_bf16 && pairs_are_slow(processor)) {
    static_assert(kFewRows == 4, "the reason names it");
    return {Isa::avx512, kFewRows,
            "this Intel core multiplies bfloat16 by AVX512-BF16 at half of float32's rate, so "
            "bfloat16 is widened unless there are at most 4 rows"};
  }
  Isa best = Isa::scalar;
  for (const Isa isa : kIsas) {
    if (has(processor, isa)) best = isa;
  }
  return {best, 0, "the best that this processor has"};
}

bool isa_emulated(Isa isa) {
#if defined(SSC_EMULATE_BF16)
  constexpr Isa kPairs = Isa::avx512;  // all that pairs of bf16 need
  if (isa == Isa::avx512_bf16) return has(this_processor(), Isa::avx512);
#else
  constexpr Isa kPairs = Isa::avx512_bf16;
#endif
#if defined(SSC_EMULATE_AMX)
  if (isa == Isa::amx_bf16) return has(this_processor(), kPairs);
#else
  static_cast<void>(kPairs);
#endif
  static_cast<void>(isa);
  return false;
}

bool isa_available(Isa isa) { return has(this_processor(), isa) || isa_emulated(isa); }

IsaChoice isa_choice() {
  const char* name = std::getenv("SSC_CPU_ISA");
  if (name == nullptr || *name == '\0') {
    static const IsaChoice fastest = fastest_isa(this_processor());
    return fastest;
  }
  for (const Isa isa : kIsas) {
    if (std::string(name) != isa_name(isa)) continue;
    if (isa_available(isa)) return {isa, 0, "SSC_CPU_ISA names it"};
    throw std::runtime_error(std::string("SSC_CPU_ISA=") + name + ": this CPU does not run it");
  }
  throw std::runtime_error(std::string("SSC_CPU_ISA=") + name +
                           ": expected scalar, avx2, avx512, avx512_bf16 or amx_bf16");
}

Isa active_isa(int64_t rows) { return isa_for(isa_choice(), rows); }

}  // namespace ssc
