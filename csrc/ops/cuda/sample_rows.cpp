// Draws of which every row has its own, on the GPU.
#include <tuple>

#include "csrc/ops/cuda/proposal.h"

namespace ssc::ops::cuda {
namespace {

using Drawn = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Drawn sample_rows(Tensor key, Tensor target, int64_t kind, int64_t num_classes,
                  std::optional<Tensor> table, std::optional<Tensor> probability_bits,
                  int64_t num_drawable, int64_t num_samples, int64_t method,
                  std::optional<Tensor> tries, std::optional<Tensor> exclude, bool keep_ids) {
  check_int64(target, "target");
  STD_TORCH_CHECK(target.dim() == 2, "target must be [B, T]");
  const OnDevice device(target);
  const int64_t rows = target.size(0);
  RowDrawer drawer(device, kind, num_classes, table, probability_bits);
  const RowDraws draws(device, key, rows, num_drawable, num_samples, method, tries, exclude,
                       drawer.num_classes());
  const int64_t kept = keep_ids ? num_samples : 0;
  const Tensor ids = device.empty({rows, kept}, ScalarType::Long);
  Tensor num_draws = device.empty({keep_ids ? rows : 0}, ScalarType::Long);
  const Tensor log_count = device.empty({rows, kept}, ScalarType::Float);
  const Tensor target_log_count = device.empty_like(target, ScalarType::Float);
  torch::stable::fill_(num_draws, static_cast<double>(num_samples));
  drawer.prepare(device, draws, rows);
  const auto wanted = [&]<class T>(const Tensor& t) {
    return keep_ids ? static_cast<T*>(t.data_ptr()) : nullptr;
  };
  drawer.draw(
      0, rows,
      {wanted.operator()<int64_t>(ids), wanted.operator()<int64_t>(num_draws),
       wanted.operator()<float>(log_count), static_cast<const int64_t*>(target.const_data_ptr()),
       target.size(1), static_cast<float*>(target_log_count.data_ptr())},
      device.stream());
  return {ids, num_draws, log_count, target_log_count};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sampled_softmax, SSC_CUDA_KEY, m) {
  m.impl("sample_rows", TORCH_BOX(&sample_rows));
}

}  // namespace ssc::ops::cuda
