// The draws on the GPU, as in csrc/ops/cpu, with the key in device memory, read by the kernel.
#include "csrc/cuda/sample/sample.h"

#include <optional>
#include <tuple>

#include "csrc/ops/cuda/proposal.h"
#include "csrc/ops/cuda/race.h"

namespace ssc::ops::cuda {
namespace {

using Draw = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// tries: one float64 in the memory of the CPU or of the device; none: S draws with replacement.
// correct: they are to correct logits (LogCount).
template <class Proposal>
Tensor log_counts(const Proposal& proposal, const Tensor& ids, int64_t num_samples,
                  const std::optional<Tensor>& tries, bool correct, const OnDevice& device) {
  check_int64(ids, "ids");
  device.check_here(ids, "ids");
  LogCount count = log_count_with_replacement(static_cast<uint64_t>(num_samples));
  const double* device_tries = nullptr;
  if (tries.has_value()) {
    STD_TORCH_CHECK(tries->scalar_type() == ScalarType::Double && tries->numel() == 1,
                    "tries must be one float64 number");
    const auto* number = static_cast<const double*>(tries->const_data_ptr());
    if (device.host_can_read(*tries)) {
      count = log_count_distinct(*number);
    } else {
      device.check_here(*tries, "tries");
      device_tries = number;
    }
  }
  if (correct) count = as_correction(count);
  const Tensor out = device.empty_like(ids, ScalarType::Float);
  check_launch(ssc::cuda::log_expected_counts(
                   proposal, count, device_tries, static_cast<const int64_t*>(ids.const_data_ptr()),
                   ids.numel(), static_cast<float*>(out.mutable_data_ptr()), device.stream()),
               "log_expected_counts");
  return out;
}

// The first num_samples arrivals of an exponential race over all classes.
template <class Proposal>
void draw_by_race(const Proposal& proposal, const int64_t* key, int64_t num_classes,
                  const Tensor& ids, const Tensor& num_draws, const OnDevice& device) {
  const cudaStream_t stream = device.stream();
  Races race(device, num_classes, 1);
  race.run(proposal, key, ssc::cuda::kSharedDraws, 1, nullptr, 0, stream);
  check_launch(ssc::cuda::first_arrivals(race.sorted_times(), race.arrivals(), ids.numel(),
                                         static_cast<int64_t*>(ids.data_ptr()),
                                         static_cast<int64_t*>(num_draws.data_ptr()), stream),
               "first_arrivals");
}

template <class Proposal>
Draw draw(const Proposal& proposal, uint64_t num_classes, const Tensor& key, const Tensor& target,
          int64_t num_samples, int64_t method, const std::optional<Tensor>& tries,
          const OnDevice& device) {
  check_draw(key, target, num_samples, method, num_classes);
  device.check_here(key, "key");
  const auto* const words = static_cast<const int64_t*>(key.const_data_ptr());
  const Tensor ids = device.empty({num_samples}, ScalarType::Long);
  Tensor num_draws = device.empty({}, ScalarType::Long);
  auto* const out = static_cast<int64_t*>(ids.data_ptr());
  std::optional<Tensor> counted = tries;
  if (method == kWithReplacement || num_samples == 0) {
    check_launch(ssc::cuda::draw(proposal, words, num_samples, out, device.stream()), "draw");
    torch::stable::fill_(num_draws, static_cast<double>(num_samples));
  } else if (method == kDistinct) {
    const Tensor workspace =
        device.empty({ssc::cuda::distinct_bytes(num_samples)}, ScalarType::Byte);
    check_launch(ssc::cuda::draw_distinct(proposal, words, num_samples, out,
                                          static_cast<int64_t*>(num_draws.data_ptr()),
                                          workspace.data_ptr(), device.stream()),
                 "draw_distinct");
  } else {
    draw_by_race(proposal, words, static_cast<int64_t>(num_classes), ids, num_draws, device);
  }
  if (method != kWithReplacement && !counted.has_value()) {
    counted = torch::stable::to(num_draws, ScalarType::Double);
  }
  return {ids, num_draws, log_counts(proposal, ids, num_samples, counted, true, device),
          log_counts(proposal, target, num_samples, counted, true, device)};
}

// The draws that every row has of its own.
Draw draw_rows(const OnDevice& device, const Tensor& key, const Tensor& target,
               const ProposalArguments& proposal, int64_t num_drawable, int64_t num_samples,
               int64_t method, const std::optional<Tensor>& tries,
               const std::optional<Tensor>& exclude, bool keep_ids) {
  check_int64(target, "target");
  STD_TORCH_CHECK(target.dim() == 2, "target must be [B, T]");
  const int64_t rows = target.size(0);
  RowDrawer drawer(device, proposal);
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

Draw sample(const Tensor& key, const Tensor& target, int64_t kind, int64_t num_classes,
            const std::optional<Tensor>& table, const std::optional<Tensor>& probability_bits,
            int64_t num_drawable, int64_t num_samples, int64_t method,
            const std::optional<Tensor>& tries, const std::optional<Tensor>& exclude, bool per_row,
            bool keep_ids) {
  const OnDevice device(target);
  const ProposalArguments arguments = {kind, num_classes, table, probability_bits};
  if (per_row) {
    return draw_rows(device, key, target, arguments, num_drawable, num_samples, method, tries,
                     exclude, keep_ids);
  }
  check_shared(exclude, keep_ids);
  const Proposal proposal = proposal_of(device, arguments);
  return std::visit(
      [&](const auto& p) {
        return draw(p, ssc::cuda::num_classes(p), key, target, num_samples, method, tries, device);
      },
      proposal);
}

Tensor log_counts_of_ids(const Tensor& ids, int64_t kind, int64_t num_classes,
                         const std::optional<Tensor>& table,
                         const std::optional<Tensor>& probability_bits, int64_t /*num_drawable*/,
                         int64_t num_samples, const std::optional<Tensor>& tries) {
  const OnDevice device(ids);
  return std::visit(
      [&](const auto& p) { return log_counts(p, ids, num_samples, tries, false, device); },
      proposal_of(device, {kind, num_classes, table, probability_bits}));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sampled_softmax, SSC_CUDA_KEY, m) {
  m.impl("sample", TORCH_BOX(&sample));
  m.impl("log_counts", TORCH_BOX(&log_counts_of_ids));
}

}  // namespace ssc::ops::cuda
