# _C.abi3.so: the torch operators, on libtorch's stable ABI. It uses no Python C API (torch loads it
# with dlopen), so one binary serves every Python, and every torch from SSC_TORCH_TARGET on.
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

add_library(_C MODULE ${SSC_OPS_SOURCES})
target_link_libraries(_C PRIVATE ssc_cpu ssc_torch)
target_compile_definitions(_C PRIVATE TORCH_TARGET_VERSION=${SSC_TORCH_TARGET})
target_link_options(_C PRIVATE LINKER:--as-needed LINKER:-z,defs
                    LINKER:--exclude-libs,ALL)
set_target_properties(_C PROPERTIES
  PREFIX ""
  SUFFIX ".abi3.so"
  BUILD_RPATH "$ORIGIN/../torch/lib"
  INSTALL_RPATH "$ORIGIN/../torch/lib"
  BUILD_WITH_INSTALL_RPATH ON
  LIBRARY_OUTPUT_DIRECTORY "${SSC_INSTALL_DIR}")
