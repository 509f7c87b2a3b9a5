#include "csrc/cpu/loss_leaf.h"

namespace ssc {

// Defined by table_leaf.cpp, once per instruction set.
namespace scalar {
template <class T>
const LossLeaf<T>& loss_table();
}
namespace avx2 {
template <class T>
const LossLeaf<T>& loss_table();
}
namespace avx512 {
template <class T>
const LossLeaf<T>& loss_table();
}

template <class T>
const LossLeaf<T>& loss_leaf(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return avx512::loss_table<T>();
  if (isa == Isa::avx2) return avx2::loss_table<T>();
#else
  (void)isa;
#endif
  return scalar::loss_table<T>();
}

template const LossLeaf<float>& loss_leaf(Isa);
template const LossLeaf<double>& loss_leaf(Isa);

}  // namespace ssc
