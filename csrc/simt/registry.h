// Launchers by name, so that Python can call them. In any source that is linked into the bench:
//
//   SSC_SIMT_LAUNCHER("scale", +[](float* x, int64_t n, float factor, cudaStream_t stream) {
//     return ssc::cuda::launch(scale_kernel, 4, 128, 0, stream, x, n, factor);
//   });
//
// Pointers arrive as integers (tensor.data_ptr()), numbers as Python's int, bool and float; a
// cudaStream_t takes no argument. An existing launcher function can be named directly.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <tuple>
#include <type_traits>
#include <variant>
#include <vector>

namespace ssc::simt {

using Value = std::variant<int64_t, double>;

struct Launcher {
  std::string name;
  size_t arity;
  std::function<cudaError_t(std::span<const Value>)> call;
};

std::vector<Launcher>& launchers();

template <class T>
T convert(const Value*& next) {
  if constexpr (std::is_same_v<T, cudaStream_t>) {
    return nullptr;
  } else if constexpr (std::is_pointer_v<T>) {
    return reinterpret_cast<T>(std::get<int64_t>(*next++));
  } else if constexpr (std::is_integral_v<T> || std::is_enum_v<T>) {
    return static_cast<T>(std::get<int64_t>(*next++));
  } else {
    static_assert(std::is_floating_point_v<T>, "a launcher takes pointers and numbers");
    return std::visit([](auto value) { return static_cast<T>(value); }, *next++);
  }
}

struct Registration {
  template <class... Parameters>
  Registration(const char* name, cudaError_t (*launcher)(Parameters...)) {
    constexpr size_t kArity =
        (size_t{0} + ... + (std::is_same_v<Parameters, cudaStream_t> ? 0 : 1));
    launchers().push_back({name, kArity, [launcher](std::span<const Value> values) {
                             [[maybe_unused]] const Value* next = values.data();
                             // Braces: the arguments are converted from left to right.
                             const std::tuple<Parameters...> bound{convert<Parameters>(next)...};
                             return std::apply(launcher, bound);
                           }});
  }
};

}  // namespace ssc::simt

#define SSC_SIMT_REGISTRATION_(line, counter) ssc_launcher_##line##_##counter
#define SSC_SIMT_REGISTRATION(line, counter) SSC_SIMT_REGISTRATION_(line, counter)
#define SSC_SIMT_LAUNCHER(name, ...)                                                        \
  static const ::ssc::simt::Registration SSC_SIMT_REGISTRATION(__LINE__, __COUNTER__)(name, \
                                                                                      __VA_ARGS__)
