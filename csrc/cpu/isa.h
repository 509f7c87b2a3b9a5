// Which instruction set the vectorised leaf loops run with. Each leaf file (csrc/cpu/*_leaf.cpp) is
// compiled once per instruction set into a namespace of that name; the choice is made at run time.
#pragma once

namespace ssc {

enum class Isa { scalar, avx2, avx512 };

const char* isa_name(Isa isa);

// True where this build has the leaves and this CPU runs them.
bool isa_available(Isa isa);

// The best available one, or the one named by SSC_CPU_ISA. Throws std::runtime_error when the
// variable names an instruction set that is unknown or not available here.
Isa active_isa();

}  // namespace ssc
