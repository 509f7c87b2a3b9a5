#include "csrc/cpu/loss/table.h"

namespace ssc {

// Defined by kernels/table.cpp, once per instruction set.
namespace scalar {
template <class T>
const LossKernels<T>& loss_table();
}
namespace avx2 {
template <class T>
const LossKernels<T>& loss_table();
}
namespace avx512 {
template <class T>
const LossKernels<T>& loss_table();
}
namespace avx512_bf16 {  // for float alone, as the next
template <class T>
const LossKernels<T>& loss_table();
}
namespace amx_bf16 {
template <class T>
const LossKernels<T>& loss_table();
}

Isa kernels_isa(Isa isa, DType input, DType weight, Products products) {
  const auto in_bf16 = [products](DType dtype) {
    return dtype == DType::bf16 || (dtype == DType::f32 && products == Products::bf16);
  };
  return in_bf16(input) && in_bf16(weight) ? isa : vector_isa(isa);
}

template <class T>
const LossKernels<T>& loss_kernels(Isa isa, DType input, DType weight, Products products) {
#if defined(__x86_64__)
  isa = kernels_isa(isa, input, weight, products);
  if constexpr (sizeof(T) == sizeof(float)) {
    if (isa == Isa::amx_bf16) return amx_bf16::loss_table<T>();
    if (isa == Isa::avx512_bf16) return avx512_bf16::loss_table<T>();
  }
  if (isa == Isa::avx512) return avx512::loss_table<T>();
  if (isa == Isa::avx2) return avx2::loss_table<T>();
#else
  static_cast<void>(isa), static_cast<void>(input), static_cast<void>(weight);
  static_cast<void>(products);
#endif
  return scalar::loss_table<T>();
}

template const LossKernels<float>& loss_kernels(Isa, DType, DType, Products);
template const LossKernels<double>& loss_kernels(Isa, DType, DType, Products);

}  // namespace ssc
