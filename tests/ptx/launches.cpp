// Which kernels a test launches. The linker leads what nvcc's objects call of the CUDA runtime
// through here (--wrap: cmake/ptx.cmake), whatever the executor is.
#include <cuda_runtime.h>

#include <set>
#include <string>
#include <unordered_map>

namespace {

// By the address of the host's stub and by the handle that is made of it. Never destroyed: objects
// register and launch before and after anything static here.
std::unordered_map<const void*, std::string>& names() {
  static auto* all = new std::unordered_map<const void*, std::string>;
  return *all;
}
std::set<std::string>& launched() {
  static auto* all = new std::set<std::string>;
  return *all;
}

cudaError_t note(const void* kernel, cudaError_t error) {
  const auto name = names().find(kernel);
  if (error == cudaSuccess && name != names().end()) launched().insert(name->second);
  return error;
}

}  // namespace

extern "C" {

// The names, each on a line, of the kernels that ran since the last call.
[[gnu::visibility("default")]] const char* ssc_ptx_launched() {
  static std::string text;
  text.clear();
  for (const std::string& name : launched()) text += name + '\n';
  launched().clear();
  return text.c_str();
}

void __real___cudaRegisterFunction(void**, const char*, char*, const char*, int, uint3*, uint3*,
                                   dim3*, dim3*, int*);
void __wrap___cudaRegisterFunction(void** binary, const char* stub, char* device_stub,
                                   const char* name, int limit, uint3* tid, uint3* bid, dim3* block,
                                   dim3* grid, int* warp_size) {
  names()[stub] = name;
  __real___cudaRegisterFunction(binary, stub, device_stub, name, limit, tid, bid, block, grid,
                                warp_size);
}

cudaError_t __real___cudaGetKernel(cudaKernel_t*, const void*);
cudaError_t __wrap___cudaGetKernel(cudaKernel_t* kernel, const void* stub) {
  const cudaError_t error = __real___cudaGetKernel(kernel, stub);
  if (error == cudaSuccess) names()[*kernel] = std::string(names()[stub]);
  return error;
}

cudaError_t __real___cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t);
cudaError_t __wrap___cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                                      size_t shared_bytes, cudaStream_t stream) {
  return note(kernel,
              __real___cudaLaunchKernel(kernel, grid, block, arguments, shared_bytes, stream));
}

cudaError_t __real_cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t);
cudaError_t __wrap_cudaLaunchKernel(const void* stub, dim3 grid, dim3 block, void** arguments,
                                    size_t shared_bytes, cudaStream_t stream) {
  return note(stub, __real_cudaLaunchKernel(stub, grid, block, arguments, shared_bytes, stream));
}

cudaError_t __real_cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**);
cudaError_t __wrap_cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* stub,
                                       void** arguments) {
  return note(stub, __real_cudaLaunchKernelExC(config, stub, arguments));
}

}  // extern "C"
