// The groups of arguments that several operators have on the GPU.
#pragma once

#include <optional>

#include "csrc/cuda/loss/loss.h"
#include "csrc/ops/checks.h"
#include "csrc/ops/cuda/device.h"

namespace ssc::ops::cuda {

using ssc::cuda::AccumulatorOf;
using ssc::cuda::LossProblem;

// Calls f with a null pointer to the C++ type of a dtype.
template <class F>
void with_type(ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(static_cast<float*>(nullptr));
    case ScalarType::Double:
      return f(static_cast<double*>(nullptr));
    case ScalarType::BFloat16:
      return f(static_cast<__nv_bfloat16*>(nullptr));
    case ScalarType::Half:
      return f(static_cast<__half*>(nullptr));
    default:
      STD_TORCH_CHECK(false, "input must be float32, bfloat16, float16 or float64");
  }
}

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}
template <class T>
const T* data(const std::optional<Tensor>& t) {
  return t.has_value() ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

// The operands of every operator of losses and logits, and the device that they are on.
struct Operands {
  Operands(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
           double inv_temperature, int64_t products)
      : device(input),
        input(check_matrix(input, "input")),
        weight(check_matrix(weight, "weight")),
        batch(input.size(0)),
        dim(input.size(1)),
        classes(weight.size(0)),
        inv_temperature(inv_temperature),
        tf32(products_of(products) == Products::tf32),
        dtype(input.scalar_type()),
        row_dtype(is_double(input) ? ScalarType::Double : ScalarType::Float) {
    STD_TORCH_CHECK(weight.size(1) == dim, "weight must be [C, D=", dim, "], got [", classes, ", ",
                    weight.size(1), "]");
    STD_TORCH_CHECK(weight.scalar_type() == dtype && (!bias || bias->scalar_type() == dtype),
                    "the CUDA kernels take input, weight and bias of one dtype");
    if (bias.has_value()) this->bias = contiguous_vector(*bias, classes, "bias");
    device.check_here(weight, "weight");
    device.check_here(bias, "bias");
  }

  // With no targets, no samples and no counts.
  template <class T>
  LossProblem<T> problem() const {
    LossProblem<T> p{};
    p.input = data<T>(input);
    p.weight = data<T>(weight);
    p.input_stride = input.stride(0);
    p.weight_stride = weight.stride(0);
    p.bias = data<T>(bias);
    p.batch = batch;
    p.dim = dim;
    p.classes = classes;
    p.inv_temperature = static_cast<typename AccumulatorOf<T>::Type>(inv_temperature);
    return p;
  }

  template <class T>
  ssc::cuda::MatmulPath path() const {
    return ssc::cuda::matmul_path<T>(device.capability_major(), tf32);
  }

  // In how many parts `columns` samples or classes are best scored.
  int splits(int64_t columns) const {
    return ssc::cuda::score_splits(batch, columns, device.multiprocessors());
  }

  // [size] class ids, contiguous.
  Tensor class_ids(const Tensor& t, int64_t size, const char* name) const {
    device.check_here(t, name);
    integers(t, name);
    return contiguous_vector(t, size, name);
  }

  // [size] log counts in float32, contiguous.
  std::optional<Tensor> counts(const std::optional<Tensor>& t, int64_t size,
                               const char* name) const {
    if (!t.has_value()) return std::nullopt;
    device.check_here(*t, name);
    return contiguous_vector(torch::stable::to(*t, ScalarType::Float), size, name);
  }

  // [B] numbers of the row outputs' dtype, contiguous.
  Tensor row_numbers(const Tensor& t, const char* name) const {
    device.check_here(t, name);
    const Tensor numbers = contiguous_vector(t, batch, name);
    STD_TORCH_CHECK(numbers.scalar_type() == row_dtype, name, " must have the row outputs' dtype");
    return numbers;
  }

  OnDevice device;
  Tensor input, weight;
  std::optional<Tensor> bias;
  int64_t batch, dim, classes;
  double inv_temperature;
  bool tf32;                    // float32 products may be rounded so
  ScalarType dtype, row_dtype;  // of the parameters, and of what is per row
};

// The rows of a negatives' loss: the logits r [B] that their sums are relative to, the classes
// [B, K] that are their hits, and which of them count.
struct Rows {
  Rows(const Tensor& target_logit_tensor, const Tensor& hits_tensor,
       const std::optional<Tensor>& counted_tensor, const Operands& operands)
      : target_logit(operands.row_numbers(target_logit_tensor, "target_logit")),
        hits(torch::stable::contiguous(hits_tensor)) {
    operands.device.check_here(hits, "hits");
    integers(hits, "hits");
    STD_TORCH_CHECK(hits.dim() == 2 && hits.size(0) == operands.batch, "hits must be [B, K]");
    if (!counted_tensor.has_value()) return;
    operands.device.check_here(*counted_tensor, "counted");
    counted = contiguous_vector(*counted_tensor, operands.batch, "counted");
    STD_TORCH_CHECK(counted->scalar_type() == ScalarType::Bool, "counted must be bool");
  }

  Tensor target_logit, hits;
  std::optional<Tensor> counted;
};

}  // namespace ssc::ops::cuda
