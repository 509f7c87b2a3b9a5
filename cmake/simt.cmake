# The CUDA kernels on the CPU (csrc/simt), as three Python modules in build/.../simt:
#
#   ssc_simt_plain     as fast as it gets: values
#   ssc_simt_checked   every memory access is seen: races, bounds, initialisation, statistics
#   ssc_simt_asan      AddressSanitizer and UndefinedBehaviorSanitizer
#
# They need the CUDA toolkit's headers, but no nvcc, and g++ (the checked build's hooks are GCC's).

include(cmake/pybind11.cmake)
find_program(SSC_NVCC nvcc HINTS ENV CUDA_HOME PATH_SUFFIXES bin)
cmake_path(GET SSC_NVCC PARENT_PATH ssc_nvcc_folder)
find_path(SSC_CUDA_INCLUDE cuda_runtime.h
          HINTS "${Python_SITELIB}/nvidia/cu13/include" "$ENV{CUDA_HOME}/include"
                "${ssc_nvcc_folder}/../include" /usr/local/cuda/include)
if(NOT SSC_CUDA_INCLUDE)
  message(FATAL_ERROR "csrc/simt needs the CUDA toolkit's headers (cuda_runtime.h): install the "
                      "nvidia-* packages of requirements-dev.txt, or set CUDA_HOME")
endif()
if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  message(FATAL_ERROR "csrc/simt needs g++, not ${CMAKE_CXX_COMPILER}")
endif()

# Kernels are compiled apart from the executor: only they get the hooks or the sanitizers' checks
# of the checked build. nvcc keeps no track of what a pointer was cast from, hence no strict
# aliasing; the order of definitions is that of the guards between shared variables.
set(ssc_kernel_options -fno-toplevel-reorder -fno-strict-aliasing -ffp-contract=off -g1
    "-ffile-prefix-map=${PROJECT_SOURCE_DIR}/=" "-ffile-prefix-map=${CMAKE_BINARY_DIR}=." -Wno-unknown-pragmas)

# ssc_add_simt(<variant> EXECUTOR <source>... KERNEL_OPTIONS <flag>... EXECUTOR_OPTIONS <flag>...)
function(ssc_add_simt variant)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;KERNEL_OPTIONS;EXECUTOR_OPTIONS;LINK_OPTIONS")
  set(module ssc_simt_${variant})
  set(kernels ${module}_kernels)
  add_library(${kernels} OBJECT ${SSC_CUDA_SOURCES} ${SSC_SIMT_KERNELS})
  set_source_files_properties(${SSC_CUDA_SOURCES} ${SSC_SIMT_KERNELS} PROPERTIES LANGUAGE CXX)
  add_library(${module} MODULE ${SSC_SIMT_SOURCES} ${arg_SOURCES})
  foreach(target ${kernels} ${module})
    target_link_libraries(${target} PRIVATE ssc_options)
    target_include_directories(${target} SYSTEM PRIVATE "${SSC_CUDA_INCLUDE}")
    target_compile_definitions(${target} PRIVATE SSC_SIMT)
  endforeach()
  target_compile_options(${kernels} PRIVATE -x c++ ${ssc_kernel_options} ${arg_KERNEL_OPTIONS})
  target_compile_options(${module} PRIVATE -g1 ${arg_EXECUTOR_OPTIONS})
  if(variant STREQUAL "checked")
    target_compile_definitions(${kernels} PRIVATE SSC_SIMT_CHECKED SSC_SIMT_KERNEL)
    target_compile_definitions(${module} PRIVATE SSC_SIMT_CHECKED)
  endif()
  target_sources(${module} PRIVATE $<TARGET_OBJECTS:${kernels}>)
  target_include_directories(${module} SYSTEM PRIVATE "${ssc_pybind11_include}")
  target_compile_definitions(${module} PRIVATE SSC_SIMT_MODULE=${module}
                             SSC_SIMT_VARIANT="${variant}")
  target_link_libraries(${module} PRIVATE Python::Module)
  target_link_options(${module} PRIVATE ${arg_LINK_OPTIONS})
  set_target_properties(${module} PROPERTIES
    PREFIX "" SUFFIX ".so" LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/simt")
endfunction()

set(ssc_asan -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
ssc_add_simt(plain
  SOURCES csrc/simt/statistics_none.cpp
  KERNEL_OPTIONS -O2
  EXECUTOR_OPTIONS -O2)
ssc_add_simt(checked
  SOURCES csrc/simt/checks.cpp csrc/simt/hooks.cpp csrc/simt/memory_statistics.cpp
          csrc/simt/races.cpp csrc/simt/shadow.cpp
  KERNEL_OPTIONS -O1 -fno-tree-sra -fsanitize=thread --param=tsan-instrument-func-entry-exit=0
  EXECUTOR_OPTIONS -O2)
ssc_add_simt(asan
  SOURCES csrc/simt/statistics_none.cpp
  KERNEL_OPTIONS -O1 ${ssc_asan}
  EXECUTOR_OPTIONS -O2 -DSSC_SIMT_ASAN
  LINK_OPTIONS ${ssc_asan})

add_custom_target(ssc_simt DEPENDS ssc_simt_plain ssc_simt_checked ssc_simt_asan)

# The CUDA operators over the plain kernels, as torch.ops.sampled_softmax_simt.
if(SSC_TORCH_DIR)
  include(cmake/torch.cmake)
  set(executor ${SSC_SIMT_SOURCES} csrc/simt/statistics_none.cpp)
  list(REMOVE_ITEM executor csrc/simt/bind.cpp)
  add_library(ssc_simt_ops MODULE ${SSC_SIMT_OPS_SOURCES} ${SSC_SIMT_TWIN_SOURCES} ${executor}
              $<TARGET_OBJECTS:ssc_simt_plain_kernels>)
  target_link_libraries(ssc_simt_ops PRIVATE ssc_options ssc_torch)
  target_include_directories(ssc_simt_ops SYSTEM PRIVATE "${SSC_CUDA_INCLUDE}")
  target_compile_definitions(ssc_simt_ops PRIVATE SSC_SIMT SSC_CUDA_KEY=CPU
                             sampled_softmax=sampled_softmax_simt
                             TORCH_TARGET_VERSION=${SSC_TORCH_TARGET})
  target_compile_options(ssc_simt_ops PRIVATE -g1 -O2)
  set_target_properties(ssc_simt_ops PROPERTIES
    PREFIX "" SUFFIX ".so" LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/simt")
  add_dependencies(ssc_simt ssc_simt_ops)
endif()
