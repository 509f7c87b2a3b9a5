# CUDA as a language of CMake's: nvcc by CMAKE_CUDA_COMPILER, and what all our kernels are compiled
# with. CMAKE_CUDA_ARCHITECTURES and CMAKE_CUDA_RUNTIME_LIBRARY are set before this is included.
if(SSC_BUILD_SIMT)
  message(FATAL_ERROR "SSC_BUILD_SIMT compiles the sources of the kernels as another language: give "
                      "it a build folder of its own")
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
if(SSC_CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER "${SSC_CCACHE}")
endif()
# The nvcc of NVIDIA's packages on PyPI looks for lib64 and has lib.
set(ssc_cuda_libraries "")
if(CMAKE_CUDA_COMPILER MATCHES "^(.*)/bin/nvcc$")
  if(EXISTS "${CMAKE_MATCH_1}/lib/libcudart_static.a" AND NOT EXISTS "${CMAKE_MATCH_1}/lib64")
    set(ssc_cuda_libraries "${CMAKE_MATCH_1}/lib")
    set(CMAKE_CUDA_FLAGS_INIT "-L${ssc_cuda_libraries}")
  endif()
endif()
enable_language(CUDA)
