# The one list of sources. Paths from the repository's root, one per line, in alphabetical order.

# Plain C++, compiled once for the baseline CPU.
set(SSC_CPU_SOURCES
    csrc/cpu/isa.cpp
)

# Leaves (cmake/leaves.cmake) that must give the same bits on every CPU: -ffp-contract=off.
set(SSC_LEAF_SOURCES_EXACT
)

# Leaves whose products may be contracted into fused multiply-adds: -ffp-contract=fast.
set(SSC_LEAF_SOURCES_FMA
)

# The only sources that include torch headers.
set(SSC_OPS_SOURCES
    csrc/ops/info.cpp
    csrc/ops/schema.cpp
)

# tests/cpp: one executable per file, run once per instruction set.
set(SSC_CPP_TESTS
    tests/cpp/test_isa.cpp
)
