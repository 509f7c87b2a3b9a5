// CUDA as kernels see it when g++ compiles them: host twins of the language (language.h), warp
// collectives, atomics and intrinsics over the executor. Included by csrc/cuda/device/device.h.
#pragma once

#if !defined(__has_include) || !__has_include(<cuda_runtime.h>)
#error "csrc/simt needs the CUDA toolkit's headers: set CUDA_HOME (CMake: -DSSC_CUDA_INCLUDE=...)"
#endif

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// Twins of intrinsics use the toolkit's vector types, hence the order.
#include "csrc/simt/language.h"
//
#include "csrc/simt/atomics.h"
#include "csrc/simt/intrinsics.h"
#include "csrc/simt/launch.h"
#include "csrc/simt/warp.h"
