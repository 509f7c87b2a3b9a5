// Which instruction set the vectorised leaf loops run with. Each leaf file (csrc/cpu/*_leaf.cpp) is
// compiled once per instruction set into a namespace of that name; the choice is made at run time.
#pragma once

namespace ssc {

// In rising order. avx512_bf16 is avx512 and, where H and W are bf16, products of pairs of them.
enum class Isa { scalar, avx2, avx512, avx512_bf16 };
inline constexpr Isa kIsas[] = {Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512_bf16};

const char* isa_name(Isa isa);

// True where this build has the leaves and this CPU runs them.
bool isa_available(Isa isa);

// True where isa_available rests on the emulation of AVX512-BF16 that a build for tests may contain
// (SSC_EMULATE_BF16): far slower than avx512, so it is never chosen, only named.
bool isa_emulated(Isa isa);

// The best available one, or the one named by SSC_CPU_ISA. Throws std::runtime_error when the
// variable names an instruction set that is unknown or not available here.
Isa active_isa();

}  // namespace ssc
