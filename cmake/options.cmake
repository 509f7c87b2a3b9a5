# Flags that every one of our sources gets, through the interface target ssc_options, and ccache.
add_library(ssc_options INTERFACE)
target_include_directories(ssc_options INTERFACE "${PROJECT_SOURCE_DIR}")
target_compile_options(ssc_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra>
                       $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wno-unknown-pragmas>)
if(SSC_WERROR)
  target_compile_options(ssc_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>
                         $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)
endif()
if(SSC_EMULATE_BF16)
  target_compile_definitions(ssc_options INTERFACE SSC_EMULATE_BF16)
endif()
if(SSC_EMULATE_AMX)
  target_compile_definitions(ssc_options INTERFACE SSC_EMULATE_AMX)
endif()
if(SSC_SANITIZE)
  set(ssc_sanitizers -fsanitize=address,undefined -fno-sanitize-recover=all)
  # g++'s flow analysis sees the checks that the sanitizers add and warns about code nobody wrote.
  target_compile_options(ssc_options INTERFACE ${ssc_sanitizers} -O1 -g1 -fno-omit-frame-pointer
                         -Wno-maybe-uninitialized)
  target_link_options(ssc_options INTERFACE ${ssc_sanitizers})
endif()

find_program(SSC_CCACHE ccache)
if(SSC_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${SSC_CCACHE}")
endif()
