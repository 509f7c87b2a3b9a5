# _C_cuda.so: the CUDA kernels (csrc/cuda) and the operators that call them, on libtorch's stable ABI
# as _C.abi3.so is. It is a library of its own because torch's CPU builds can't load it.
# CMAKE_CUDA_COMPILER names the nvcc, CMAKE_CUDA_ARCHITECTURES what to compile for (a number alone:
# with PTX, for GPUs to come), CMAKE_CUDA_RUNTIME_LIBRARY how the CUDA runtime is linked: Static, or
# Shared for wheels, since the static one takes symbols of the newest glibc that it meets; torch
# brings the shared one.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 86-real 89-real 90-real 100-real 120)
endif()
if(NOT DEFINED CMAKE_CUDA_RUNTIME_LIBRARY)
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
endif()
include(cmake/cuda_language.cmake)

# The architectures as PyTorch writes them, "8.0 9.0+PTX": for build_info and error messages.
set(ssc_architectures "")
foreach(architecture IN LISTS CMAKE_CUDA_ARCHITECTURES)
  string(REGEX MATCH "^([0-9]+)([0-9][af]?)(-real)?$" matched "${architecture}")
  if(NOT matched)
    message(FATAL_ERROR "CMAKE_CUDA_ARCHITECTURES: ${architecture} is not like 90 or 90-real")
  endif()
  set(ptx "+PTX")
  if(CMAKE_MATCH_3)
    set(ptx "")
  endif()
  list(APPEND ssc_architectures "${CMAKE_MATCH_1}.${CMAKE_MATCH_2}${ptx}")
endforeach()
list(JOIN ssc_architectures " " ssc_architectures)
file(WRITE "${CMAKE_BINARY_DIR}/cuda_architectures.txt" "${ssc_architectures}\n")

# A CPU torch has no libtorch_cuda.so to name as a dependency; a stub with its name takes its place.
find_library(SSC_TORCH_CUDA_LIBRARY torch_cuda PATHS "${SSC_TORCH_DIR}/lib" NO_DEFAULT_PATH)
if(SSC_TORCH_CUDA_LIBRARY)
  add_library(ssc_torch_cuda SHARED IMPORTED)
  set_target_properties(ssc_torch_cuda PROPERTIES IMPORTED_LOCATION "${SSC_TORCH_CUDA_LIBRARY}")
else()
  add_library(ssc_torch_cuda SHARED csrc/ops/cuda/torch_cuda_stub.cpp)
  set_target_properties(ssc_torch_cuda PROPERTIES
    OUTPUT_NAME torch_cuda
    LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/stub")
endif()

add_library(_C_cuda MODULE ${SSC_CUDA_OPS_SOURCES} ${SSC_CUDA_SOURCES} ${SSC_CUDA_CUB_SOURCES})
target_link_libraries(_C_cuda PRIVATE ssc_options ssc_torch ssc_torch_cuda)
target_link_directories(_C_cuda PRIVATE ${ssc_cuda_libraries})
target_include_directories(_C_cuda SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_compile_definitions(_C_cuda PRIVATE USE_CUDA TORCH_TARGET_VERSION=${SSC_TORCH_TARGET}
                           $<$<COMPILE_LANGUAGE:CXX>:sampled_softmax=${SSC_NAMESPACE}>
                           "SSC_CUDA_ARCHITECTURES=\"${ssc_architectures}\"")
# CUB's ranges for profilers would call dlopen, of which glibc 2.34 has a new version.
set_source_files_properties(${SSC_CUDA_CUB_SOURCES} PROPERTIES
                            COMPILE_DEFINITIONS CCCL_DISABLE_NVTX)
target_compile_options(_C_cuda PRIVATE
                       $<$<COMPILE_LANGUAGE:CUDA>:-Wno-deprecated-gpu-targets;--threads=4>)
# Not --as-needed: libtorch_cuda.so has to be there, whatever of it is used.
target_link_options(_C_cuda PRIVATE LINKER:-z,defs LINKER:--exclude-libs,ALL)
set_target_properties(_C_cuda PROPERTIES
  PREFIX ""
  SUFFIX ".so"
  BUILD_RPATH "$ORIGIN/../torch/lib"
  INSTALL_RPATH "$ORIGIN/../torch/lib"
  BUILD_WITH_INSTALL_RPATH ON
  LIBRARY_OUTPUT_DIRECTORY "${SSC_INSTALL_DIR}")
ssc_take_old_symbols(_C_cuda)
