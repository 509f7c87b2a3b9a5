# _C.abi3.so: the torch operators, on libtorch's stable ABI. It uses no Python C API (torch loads it
# with dlopen), so one binary serves every Python, and every torch from SSC_TORCH_TARGET on.
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

# Symbols of manylinux_2_28 at the most: what is newer has a definition of ours.
if(CMAKE_SYSTEM_NAME STREQUAL "Linux" AND CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64")
  target_sources(_C PRIVATE csrc/ops/old_glibc.cpp)
  target_link_options(_C PRIVATE LINKER:--wrap=exp LINKER:--wrap=log)
endif()
