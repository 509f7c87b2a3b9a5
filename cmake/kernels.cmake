# The innermost loops: the sources of csrc/cpu/kernels, and no others, are compiled once per
# instruction set into the namespace ssc::<SSC_ISA>, and csrc/cpu/base/isa.h chooses among them at
# run time. Only these objects see flags such as -mavx512f, so nothing else can execute instructions
# that an older CPU lacks.

set(SSC_ISAS scalar)  # those with every kernel
set(SSC_PAIR_ISAS "")  # those of matrix products, for pairs of bf16: in vectors
set(SSC_TILE_ISAS "")  # and in tiles
set(SSC_SPLIT_ISAS "")  # and in tiles of two parts of float32
set(SSC_ISA_FLAGS_scalar "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  list(APPEND SSC_ISAS avx2 avx512)
  list(APPEND SSC_PAIR_ISAS avx512_bf16)
  list(APPEND SSC_TILE_ISAS amx_bf16)
  list(APPEND SSC_SPLIT_ISAS amx_split)
  set(SSC_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c)
  set(SSC_ISA_FLAGS_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512cd -mfma -mf16c
                           -mprefer-vector-width=512)
  set(SSC_ISA_FLAGS_avx512_bf16 ${SSC_ISA_FLAGS_avx512} -DSSC_BF16_PAIRS)
  if(NOT SSC_EMULATE_BF16)
    list(APPEND SSC_ISA_FLAGS_avx512_bf16 -mavx512bf16)
  endif()
  set(SSC_ISA_FLAGS_amx_bf16 ${SSC_ISA_FLAGS_avx512_bf16} -DSSC_AMX)
  set(SSC_ISA_FLAGS_amx_split ${SSC_ISA_FLAGS_amx_bf16} -DSSC_SPLIT)
endif()

# ssc_add_kernels(<objects> <fp_contract> <isas> <source>...): compiles the sources for each of
# these instruction sets and appends the object libraries to the list <objects>. fp_contract: off
# where every instruction set must give the same bits (sampling), fast where a*b+c may become one
# fma.
function(ssc_add_kernels objects fp_contract isas)
  set(libraries ${${objects}})
  foreach(source IN LISTS ARGN)
    get_filename_component(stem "${source}" NAME_WE)
    foreach(isa IN LISTS isas)
      set(library "kernels_${stem}_${isa}")
      add_library(${library} OBJECT "${source}")
      target_link_libraries(${library} PRIVATE ssc_options)
      target_compile_definitions(${library} PRIVATE SSC_ISA=${isa})
      target_compile_options(${library} PRIVATE -ffp-contract=${fp_contract}
                             ${SSC_ISA_FLAGS_${isa}})
      if(NOT SSC_SANITIZE)
        target_compile_options(${library} PRIVATE $<$<CONFIG:Release>:-O3>)
      endif()
      list(APPEND libraries ${library})
    endforeach()
  endforeach()
  set(${objects} ${libraries} PARENT_SCOPE)
endfunction()

# ssc_add_cpu_library(<target>): the torch-free kernels as one static library.
function(ssc_add_cpu_library target)
  set(kernels "")
  ssc_add_kernels(kernels off "${SSC_ISAS}" ${SSC_KERNEL_SOURCES_EXACT})
  ssc_add_kernels(kernels fast "${SSC_ISAS}" ${SSC_KERNEL_SOURCES_ROWS})
  ssc_add_kernels(kernels fast "${SSC_ISAS};${SSC_PAIR_ISAS};${SSC_TILE_ISAS};${SSC_SPLIT_ISAS}"
                  ${SSC_KERNEL_SOURCES_MATMUL})
  ssc_add_kernels(kernels fast "${SSC_ISAS};${SSC_PAIR_ISAS}" ${SSC_KERNEL_SOURCES_VECTORS})
  ssc_add_kernels(kernels fast "${SSC_TILE_ISAS};${SSC_SPLIT_ISAS}" ${SSC_KERNEL_SOURCES_TILES})
  add_library(${target} STATIC ${SSC_CPU_SOURCES})
  target_link_libraries(${target} PUBLIC ssc_options)
  foreach(kernel IN LISTS kernels)
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${kernel}>)
  endforeach()
endfunction()
