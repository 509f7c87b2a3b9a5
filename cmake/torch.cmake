# libtorch of the Python package in SSC_TORCH_DIR, for what is built on its stable ABI.
set(SSC_TORCH_TARGET 0x020b000000000000)  # 2.11: major, minor, patch in the three highest bytes

set(torch_include "${SSC_TORCH_DIR}/include")
find_library(SSC_TORCH_CPU_LIBRARY torch_cpu PATHS "${SSC_TORCH_DIR}/lib" NO_DEFAULT_PATH)
if(NOT EXISTS "${torch_include}/torch/csrc/stable/library.h" OR NOT SSC_TORCH_CPU_LIBRARY)
  message(FATAL_ERROR "no libtorch with a stable ABI in SSC_TORCH_DIR='${SSC_TORCH_DIR}'")
endif()

# No find_package(Torch): its config drags in CUDA, MKL and flags that the stable ABI doesn't need.
# libtorch_cpu is named as a dependency because Python loads torch with local symbols: an undefined
# aoti_torch_* would not be found in a torch that is already in memory.
add_library(ssc_torch SHARED IMPORTED)
set_target_properties(ssc_torch PROPERTIES
  IMPORTED_LOCATION "${SSC_TORCH_CPU_LIBRARY}"
  INTERFACE_INCLUDE_DIRECTORIES "${torch_include}")  # imported, hence -isystem: no warnings of theirs

# ssc_take_old_symbols(<target>): symbols of manylinux_2_28 at the most; what is newer has a
# definition of ours.
function(ssc_take_old_symbols target)
  if(CMAKE_SYSTEM_NAME STREQUAL "Linux" AND CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64")
    target_sources(${target} PRIVATE csrc/ops/old_glibc.cpp)
    target_link_options(${target} PRIVATE LINKER:--wrap=exp LINKER:--wrap=log)
  endif()
endfunction()
