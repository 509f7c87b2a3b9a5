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

Isa kernels_isa(Isa isa, DType input, DType weight) {
  const bool pairs = input == DType::bf16 && weight == DType::bf16;
  return pairs ? isa : vector_isa(isa);
}

template <class T>
const LossKernels<T>& loss_kernels(Isa isa, DType input, DType weight) {
#if defined(__x86_64__)
  isa = kernels_isa(isa, input, weight);
  if constexpr (sizeof(T) == sizeof(float)) {
    if (isa == Isa::amx_bf16) return amx_bf16::loss_table<T>();
    if (isa == Isa::avx512_bf16) return avx512_bf16::loss_table<T>();
  }
  if (isa == Isa::avx512) return avx512::loss_table<T>();
  if (isa == Isa::avx2) return avx2::loss_table<T>();
#else
  static_cast<void>(isa), static_cast<void>(input), static_cast<void>(weight);
#endif
  return scalar::loss_table<T>();
}

template const LossKernels<float>& loss_kernels(Isa, DType, DType);
template const LossKernels<double>& loss_kernels(Isa, DType, DType);

}  // namespace ssc
