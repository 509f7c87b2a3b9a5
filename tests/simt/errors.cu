// Calls of the runtime that fail, and what the thread's last error is afterwards.
#include "csrc/cuda/device/grid.h"
#include "csrc/simt/registry.h"

namespace {

using namespace ssc::cuda;

__global__ void mark_kernel(int* out) { *out = 1; }

}  // namespace

SSC_SIMT_LAUNCHER("allow_shared", +[](int bytes) { return allow_shared(mark_kernel, bytes, 0); });
SSC_SIMT_LAUNCHER(
    "mark", +[](int* out, unsigned threads, cudaStream_t stream) {
      return launch(mark_kernel, 1, threads, 0, stream, out);
    });
// As another library that doesn't clear up: the error stays the thread's last one.
SSC_SIMT_LAUNCHER(
    "leave_an_error", +[]() {
      int value;
      static_cast<void>(cudaDeviceGetAttribute(&value, static_cast<cudaDeviceAttr>(100000), 0));
      return cudaSuccess;
    });
SSC_SIMT_LAUNCHER(
    "last_error", +[](int* error) {
      *error = static_cast<int>(cudaGetLastError());
      return cudaSuccess;
    });
