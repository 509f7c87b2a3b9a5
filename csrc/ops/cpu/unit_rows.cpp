// Rows of W divided by their norms.
#include "csrc/cpu/loss/unit_rows.h"

#include <tuple>

#include "csrc/ops/cpu/arguments.h"

namespace ssc::ops::cpu {
namespace {

ParallelFor threads_for(int64_t elements) {
  constexpr int64_t kSerialElements = 1 << 16;
  return elements <= kSerialElements ? serial() : torch_parallel_for();
}

std::tuple<Tensor, Tensor> unit_rows_cpu(const Tensor& weight, const Tensor& classes) {
  const MatrixView rows = matrix(weight, "weight");
  const int64_t count = classes.numel(), dim = weight.size(1);
  check_int64(classes, "classes");
  const int64_t* ids = integers(classes, "classes");
  for (int64_t n = 0; n < count; ++n) {
    STD_TORCH_CHECK(ids[n] >= 0 && ids[n] < weight.size(0), "classes[", n, "] = ", ids[n],
                    " is out of range: expected [0, C=", weight.size(0), ")");
  }
  const ScalarType dtype = is_double(weight) ? ScalarType::Double : ScalarType::Float;
  const Tensor unit = empty_cpu({count, dim}, dtype), norm = empty_cpu({count}, dtype);
  with_accumulator(dtype, [&]<class T>(T) {
    unit_rows<T>(rows, ids, count, dim, static_cast<T*>(unit.data_ptr()),
                 static_cast<T*>(norm.data_ptr()), active_isa(), threads_for(count * dim));
  });
  return {unit, norm};
}

Tensor unit_rows_grad_cpu(const Tensor& grad, const Tensor& unit, const Tensor& norm) {
  check_matrix(grad, "grad");
  const int64_t count = grad.size(0), dim = grad.size(1);
  for (const Tensor& t : {grad, unit, norm}) {
    STD_TORCH_CHECK(t.is_contiguous() && t.scalar_type() == grad.scalar_type(),
                    "grad, unit and norm must be contiguous and have one dtype");
  }
  STD_TORCH_CHECK(unit.numel() == grad.numel() && norm.numel() == count,
                  "unit must be [N, D] like grad, and norm [N]");
  STD_TORCH_CHECK(is_double(grad) || grad.scalar_type() == ScalarType::Float,
                  "grad must be float32 or float64");
  const Tensor out = empty_cpu({count, dim}, grad.scalar_type());
  with_accumulator(grad.scalar_type(), [&]<class T>(T) {
    unit_rows_grad<T>(static_cast<const T*>(grad.data_ptr()),
                      static_cast<const T*>(unit.data_ptr()),
                      static_cast<const T*>(norm.data_ptr()), count, dim,
                      static_cast<T*>(out.data_ptr()), active_isa(), threads_for(count * dim));
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sampled_softmax, CPU, m) {
  m.impl("unit_rows", TORCH_BOX(&unit_rows_cpu));
  m.impl("unit_rows_grad", TORCH_BOX(&unit_rows_grad_cpu));
}

}  // namespace ssc::ops::cpu
