# The CUDA kernels as nvcc compiles them, run on the CPU by an executor of PTX, whose folder
# SSC_PTX_EXECUTOR names; tests/ptx/README.md says what it has to be. In build/.../ptx:
#
#   ssc_ptx_bench   the kernels and their launchers as a Python module, as those of simt.cmake
#   ssc_ptx_ops     the CUDA operators, as torch.ops.sampled_softmax_ptx
#
# Objects of nvcc with the PTX of SSC_PTX_ARCHITECTURES; the executor stands for libcudart.
set(SSC_PTX_EXECUTOR "" CACHE PATH "The folder of an executor of PTX, with ptx.h")
set(SSC_PTX_ARCHITECTURES "80;90" CACHE STRING "Compute capabilities to compile for, such as 80")
foreach(source ptx.h ${SSC_PTX_EXECUTOR_SOURCES})
  if(NOT EXISTS "${SSC_PTX_EXECUTOR}/${source}")
    message(FATAL_ERROR "SSC_PTX_EXECUTOR='${SSC_PTX_EXECUTOR}' has no ${source}")
  endif()
endforeach()

list(TRANSFORM SSC_PTX_ARCHITECTURES APPEND -virtual OUTPUT_VARIABLE CMAKE_CUDA_ARCHITECTURES)
set(CMAKE_CUDA_RUNTIME_LIBRARY None)
include(cmake/cuda_language.cmake)
include(cmake/pybind11.cmake)
include(cmake/torch.cmake)

# --no-compress: the executor reads the PTX in the objects, and so does tools/ptx_check.py.
function(ssc_add_ptx_objects target)
  add_library(${target} OBJECT ${ARGN})
  target_link_libraries(${target} PRIVATE ssc_options)
  target_compile_options(${target} PRIVATE --no-compress -lineinfo -Wno-deprecated-gpu-targets)
endfunction()

ssc_add_ptx_objects(ssc_ptx_kernels ${SSC_CUDA_SOURCES} ${SSC_CUDA_CUB_SOURCES})
set(newer_kernels tests/simt/warps.cu)  # with instructions that 7.5 has not
list(REMOVE_ITEM SSC_SIMT_KERNELS ${newer_kernels})
ssc_add_ptx_objects(ssc_ptx_bench_kernels ${SSC_SIMT_KERNELS})
list(FILTER CMAKE_CUDA_ARCHITECTURES EXCLUDE REGEX "^75")
set(bench_kernels $<TARGET_OBJECTS:ssc_ptx_bench_kernels>)
if(CMAKE_CUDA_ARCHITECTURES)
  ssc_add_ptx_objects(ssc_ptx_newer_kernels ${newer_kernels})
  list(APPEND bench_kernels $<TARGET_OBJECTS:ssc_ptx_newer_kernels>)
endif()

# The executor's loops over 32 lanes want vectors, and its arithmetic must be what it says.
list(TRANSFORM SSC_PTX_EXECUTOR_SOURCES PREPEND "${SSC_PTX_EXECUTOR}/")
add_library(ssc_ptx_executor OBJECT ${SSC_PTX_EXECUTOR_SOURCES})
target_compile_options(ssc_ptx_executor PRIVATE -O3 -march=native -g1 -fno-math-errno
                       -fno-trapping-math -ffp-contract=off -fwrapv)
target_include_directories(ssc_ptx_executor SYSTEM PRIVATE
                           ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})

# launches.cpp stands between the objects and these functions of the runtime.
set(wrapped __cudaRegisterFunction __cudaGetKernel __cudaLaunchKernel cudaLaunchKernel
    cudaLaunchKernelExC)
list(TRANSFORM wrapped PREPEND LINKER:--wrap=)
function(ssc_add_ptx_module module)
  add_library(${module} MODULE ${ARGN} $<TARGET_OBJECTS:ssc_ptx_kernels>
              $<TARGET_OBJECTS:ssc_ptx_executor>)
  target_link_libraries(${module} PRIVATE ssc_options)
  target_include_directories(${module} SYSTEM PRIVATE "${SSC_PTX_EXECUTOR}"
                             ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  target_compile_options(${module} PRIVATE -g1)
  target_link_options(${module} PRIVATE ${wrapped})
  set_target_properties(${module} PROPERTIES
    PREFIX "" SUFFIX ".so" LINKER_LANGUAGE CXX LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/ptx")
endfunction()

ssc_add_ptx_module(ssc_ptx_bench ${SSC_PTX_BENCH_SOURCES} ${bench_kernels})
target_include_directories(ssc_ptx_bench SYSTEM PRIVATE "${ssc_pybind11_include}")
target_link_libraries(ssc_ptx_bench PRIVATE Python::Module)
ssc_add_ptx_module(ssc_ptx_ops ${SSC_SIMT_OPS_SOURCES} ${SSC_PTX_TWIN_SOURCES})
target_compile_definitions(ssc_ptx_ops PRIVATE SSC_CUDA_KEY=CPU
                           sampled_softmax=sampled_softmax_ptx
                           TORCH_TARGET_VERSION=${SSC_TORCH_TARGET})
target_link_libraries(ssc_ptx_ops PRIVATE ssc_torch)

add_custom_target(ssc_ptx DEPENDS ssc_ptx_bench ssc_ptx_ops)
