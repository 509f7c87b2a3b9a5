// Work on single rows of length D: target logits, the ends of the input gradient, and the targets'
// own share of the weight gradient.
#include "csrc/cpu/kernels/stages.h"

namespace ssc::SSC_ISA {
namespace {

template <class S>
SSC_INLINE const S* row_at(const S* data, const MatrixView& matrix, int64_t row) {
  return data + row * matrix.stride;
}

}  // namespace

template <class T>
T dot(MatrixView input, int64_t row, MatrixView weight, int64_t class_id, int64_t dim) {
  constexpr int L = kLanes<T>;
  T result = 0;
  with_storage<T>(input.data, input.dtype, [&](const auto* inputs) {
    with_storage<T>(weight.data, weight.dtype, [&](const auto* weights) {
      const auto* h = row_at(inputs, input, row);
      const auto* w = row_at(weights, weight, class_id);
      Vec<T> even{}, odd{};
      int64_t d = 0;
      for (; d + 2 * L <= dim; d += 2 * L) {
        even += load_as<T>(h + d) * load_as<T>(w + d);
        odd += load_as<T>(h + d + L) * load_as<T>(w + d + L);
      }
      for (; d < dim; d += L) {
        const int64_t count = dim - d < L ? dim - d : L;
        even += load_head<T>(h + d, count) * load_head<T>(w + d, count);
      }
      result = sum_lanes<T>(even + odd);
    });
  });
  return result;
}

template <class T>
void finish_row(MatrixView weight, const RowChunk<T>& chunk, int64_t i, int64_t dim, int64_t target,
                T target_coefficient, MatrixView grad_out) {
  constexpr int L = kLanes<T>;
  const int64_t row = chunk.row_ids[i];
  const int64_t padded_dim = (dim + kPanel<T> - 1) / kPanel<T> * kPanel<T>;
  const T* gradient = chunk.grads.input + i * padded_dim;
  const T scale = chunk.grads.coefficient[i];
  with_storage<T>(weight.data, weight.dtype, [&](const auto* weights) {
    const auto* w = row_at(weights, weight, target < 0 ? 0 : target);
    with_storage<T>(grad_out.data, grad_out.dtype, [&](const auto* gradients) {
      using S = std::remove_const_t<std::remove_pointer_t<decltype(gradients)>>;
      S* out = const_cast<S*>(row_at(gradients, grad_out, row));
      int64_t d = 0;
      if (target < 0) {
        for (; d + L <= dim; d += L) store_as<T>(out + d, load(gradient + d) * scale);
        for (; d < dim; ++d) put(out + d, gradient[d] * scale);
        return;
      }
      for (; d + L <= dim; d += L) {
        store_as<T>(out + d, load(gradient + d) * scale + load_as<T>(w + d) * target_coefficient);
      }
      for (; d < dim; ++d) {
        put(out + d, gradient[d] * scale + get<T>(w + d) * target_coefficient);
      }
    });
  });
}

template <class T>
void add_row(MatrixView matrix, int64_t row, int64_t dim, T coefficient, T* out) {
  constexpr int L = kLanes<T>;
  with_storage<T>(matrix.data, matrix.dtype, [&](const auto* data) {
    const auto* x = row_at(data, matrix, row);
    int64_t d = 0;
    for (; d + L <= dim; d += L) {
      store<T>(out + d, load(out + d) + load_as<T>(x + d) * coefficient);
    }
    for (; d < dim; ++d) out[d] += get<T>(x + d) * coefficient;
  });
}

template <class T>
void convert(const T* from, void* to, DType dtype, int64_t count) {
  with_storage<T>(to, dtype, [&](const auto* typed) {
    using S = std::remove_const_t<std::remove_pointer_t<decltype(typed)>>;
    S* out = const_cast<S*>(typed);
    int64_t i = 0;
    for (; i + kLanes<T> <= count; i += kLanes<T>) store_as<T>(out + i, load(from + i));
    for (; i < count; ++i) put(out + i, from[i]);
  });
}

template float dot(MatrixView, int64_t, MatrixView, int64_t, int64_t);
template double dot(MatrixView, int64_t, MatrixView, int64_t, int64_t);
template void finish_row(MatrixView, const RowChunk<float>&, int64_t, int64_t, int64_t, float,
                         MatrixView);
template void finish_row(MatrixView, const RowChunk<double>&, int64_t, int64_t, int64_t, double,
                         MatrixView);
template void add_row(MatrixView, int64_t, int64_t, float, float*);
template void add_row(MatrixView, int64_t, int64_t, double, double*);
template void convert(const float*, void*, DType, int64_t);
template void convert(const double*, void*, DType, int64_t);

}  // namespace ssc::SSC_ISA
