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
namespace amx_split {  // amx_bf16 on two parts of each float32 number
template <class T>
const LossKernels<T>& loss_table();
}

namespace {

bool in_parts(DType input, DType weight, Products products) {
  return products == Products::tf32 && (input == DType::f32 || weight == DType::f32);
}

}  // namespace

Isa kernels_isa(Isa isa, DType input, DType weight, Products products) {
  const auto in_bf16 = [products](DType dtype) {
    return dtype == DType::bf16 || (dtype == DType::f32 && products != Products::ieee);
  };
  // Three products of pairs would take longer than one of float32.
  const bool slower = in_parts(input, weight, products) && isa != Isa::amx_bf16;
  return in_bf16(input) && in_bf16(weight) && !slower ? isa : vector_isa(isa);
}

template <class T>
const LossKernels<T>& loss_kernels(Isa isa, DType input, DType weight, Products products) {
#if defined(__x86_64__)
  isa = kernels_isa(isa, input, weight, products);
  if constexpr (sizeof(T) == sizeof(float)) {
    if (isa == Isa::amx_bf16) {
      const bool split = in_parts(input, weight, products);
      return split ? amx_split::loss_table<T>() : amx_bf16::loss_table<T>();
    }
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
