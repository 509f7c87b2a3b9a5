// A stand-in for libtorch_cuda.so where torch is a CPU build: _C_cuda.so then still names that
// library as one that it needs, and loads into any CUDA build of torch. It defines what _C_cuda.so
// uses of it, so that the linker reports any other undefined symbol; nothing installs or calls it.
#include <cstdint>

extern "C" __attribute__((visibility("default"))) int32_t
aoti_torch_get_current_cuda_stream(int32_t /*device_index*/, void** /*stream*/) {
  return 1;  // AOTI_TORCH_FAILURE
}
