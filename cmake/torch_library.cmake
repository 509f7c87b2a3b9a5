# _C.abi3.so: the torch operators, on libtorch's stable ABI. It uses no Python C API (torch loads it
# with dlopen), so one binary serves every Python, and every torch from SSC_TORCH_TARGET on.
add_library(_C MODULE ${SSC_OPS_SOURCES})
target_link_libraries(_C PRIVATE ssc_cpu ssc_torch)
target_compile_definitions(_C PRIVATE TORCH_TARGET_VERSION=${SSC_TORCH_TARGET}
                           sampled_softmax=${SSC_NAMESPACE})
target_link_options(_C PRIVATE LINKER:--as-needed LINKER:-z,defs
                    LINKER:--exclude-libs,ALL)
set_target_properties(_C PROPERTIES
  PREFIX ""
  SUFFIX ".abi3.so"
  BUILD_RPATH "$ORIGIN/../torch/lib"
  INSTALL_RPATH "$ORIGIN/../torch/lib"
  BUILD_WITH_INSTALL_RPATH ON
  LIBRARY_OUTPUT_DIRECTORY "${SSC_INSTALL_DIR}")
ssc_take_old_symbols(_C)
