// The choice of an instruction set at run time. Each source of csrc/cpu/kernels is compiled once
// per instruction set, into a namespace of that name.
#pragma once

#include <cstdint>

namespace ssc {

// In rising order. The last two are avx512 and, where H and W are bf16, products of pairs of them:
// in vectors (AVX512-BF16), or in the tiles of the matrix unit (AMX).
enum class Isa { scalar, avx2, avx512, avx512_bf16, amx_bf16 };
inline constexpr Isa kIsas[] = {Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512_bf16,
                                Isa::amx_bf16};

const char* isa_name(Isa isa);

// The instruction set of all kernels but those of matrix products.
constexpr Isa vector_isa(Isa isa) { return isa > Isa::avx512 ? Isa::avx512 : isa; }

// The features that the choice rests on. `avx2`, `avx512` and `avx512_bf16` stand for all that the
// kernels of that name need; avx_vnni and what follows are read off because they tell Intel's cores apart. The
// family and the model would too, but hypervisors make them up.
struct Processor {
  bool intel = false;
  bool avx2 = false, avx512 = false, avx512_bf16 = false;
  bool avx_vnni = false, avx512_fp16 = false, amx_bf16 = false;
  bool tiles_granted = false;  // by the kernel, which keeps AMX from processes that don't ask
};

struct IsaChoice {
  Isa isa;
  // Calls with at most so many rows take avx512_bf16 instead, for products of bf16 with bf16; 0 for
  // none at all, not even one without rows.
  int64_t pair_rows;
  const char* reason;  // for people
};

// The fastest for a processor: a table of what has been measured, no measurement, so that the bits
// of a result never depend on how busy the machine was.
IsaChoice fastest_isa(const Processor& processor);

// True where this build has the kernels and this CPU runs them.
bool isa_available(Isa isa);

// True where isa_available rests on an emulation that a build for tests may contain
// (SSC_EMULATE_BF16, SSC_EMULATE_AMX): far slower than avx512, so it is never chosen, only named.
bool isa_emulated(Isa isa);

// The fastest for this processor, or the one named by SSC_CPU_ISA. Throws std::runtime_error when
// the variable names an instruction set that is unknown or not available here.
IsaChoice isa_choice();

// The instruction set of a choice for a call with so many rows of H. One without rows runs kernels
// too: they write the gradients' zeros.
constexpr Isa isa_for(const IsaChoice& choice, int64_t rows) {
  return choice.pair_rows > 0 && rows <= choice.pair_rows ? Isa::avx512_bf16 : choice.isa;
}

// That of isa_choice() for a call with so many rows, or with many.
Isa active_isa(int64_t rows = INT64_MAX);

}  // namespace ssc
