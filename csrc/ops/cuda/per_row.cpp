// Losses against negatives of which every row has its own, on the GPU, as in csrc/ops/cpu. Rows go
// through in chunks whose ids, logits and sorted lists fit a workspace of bounded size.
#include "csrc/ops/cuda/per_row.h"

#include <algorithm>
#include <optional>

#include "csrc/cuda/loss/class_list.h"
#include "csrc/cuda/per_row/per_row.h"
#include "csrc/ops/cuda/proposal.h"

namespace ssc::ops::cuda {
namespace {

using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kWorkspaceBytes = int64_t{64} << 20;

// Rows [first, first + count), but for their samples.
template <class T>
ssc::cuda::PerRowProblem<T> rows_problem(const Operands& operands, const Rows& rows, const Sum& sum,
                                         int64_t first, int64_t count) {
  using A = typename AccumulatorOf<T>::Type;
  const LossProblem<T> whole = operands.problem<T>();
  return {whole.input + first * whole.input_stride,
          whole.weight,
          whole.input_stride,
          whole.weight_stride,
          whole.bias,
          data<A>(rows.target_logit) + first,
          data<int64_t>(rows.hits) + first * rows.hits.size(1),
          rows.hits.size(1),
          sum.remove_hits,
          rows.counted.has_value() ? data<bool>(*rows.counted) + first : nullptr,
          nullptr,
          nullptr,
          count,
          whole.dim,
          whole.classes,
          0,
          whole.inv_temperature,
          static_cast<A>(sum.softcap),
          sum.sigmoid};
}

// ids and log counts of rows: given, or drawn for the chunk that is being worked on.
class RowSamples {
 public:
  RowSamples(const Tensor& ids, const OptionalTensor& log_count, const Operands& a)
      : samples_(check_matrix(ids, "ids").size(1)) {
    STD_TORCH_CHECK(ids.size(0) == a.batch, "ids must be [B=", a.batch, ", S]");
    integers(ids, "ids");
    a.device.check_here(ids, "ids");
    ids_ = torch::stable::contiguous(ids);
    if (!log_count.has_value()) return;
    check_matrix(*log_count, "log_expected_count");
    STD_TORCH_CHECK(log_count->size(0) == a.batch && log_count->size(1) == samples_,
                    "log_expected_count must have the shape of ids");
    a.device.check_here(*log_count, "log_expected_count");
    log_count_ = torch::stable::contiguous(torch::stable::to(*log_count, ScalarType::Float));
  }
  RowSamples(RowDrawer drawer, const RowDraws& draws, bool corrected)
      : samples_(draws.samples), corrected_(corrected), drawer_(std::move(drawer)), draws_(draws) {}

  int64_t count() const { return samples_; }
  int64_t bytes() const { return drawer_.has_value() ? 8 + (corrected_ ? 4 : 0) : 0; }

  // To be called once, for the largest chunk.
  void make_room(const OnDevice& device, int64_t rows) {
    if (!drawer_.has_value()) return;
    drawer_->prepare(device, *draws_, rows);
    ids_ = device.empty({rows, samples_}, ScalarType::Long);
    if (corrected_) log_count_ = device.empty({rows, samples_}, ScalarType::Float);
  }

  template <class T>
  void fill(ssc::cuda::PerRowProblem<T>& p, int64_t first, cudaStream_t stream) {
    const int64_t offset = drawer_.has_value() ? 0 : first * samples_;
    auto* const ids = data<int64_t>(*ids_) + offset;
    auto* const counts = log_count_.has_value() ? data<float>(*log_count_) + offset : nullptr;
    if (drawer_.has_value()) {
      drawer_->draw(first, p.batch, {ids, nullptr, counts, nullptr, 0, nullptr}, stream);
    }
    p.ids = ids;
    p.log_count = counts;
    p.samples = samples_;
  }

 private:
  int64_t samples_;
  bool corrected_ = true;
  OptionalTensor ids_, log_count_;
  std::optional<RowDrawer> drawer_;
  std::optional<RowDraws> draws_;
};

// Rows of a chunk whose samples take `bytes` each.
int64_t chunk_rows(int64_t batch, int64_t samples, int64_t bytes) {
  const int64_t most = kWorkspaceBytes / std::max<int64_t>(samples * bytes, 1);
  return std::clamp<int64_t>(most, 1, std::max<int64_t>(batch, 1));
}

// Scores and finishes a chunk.
template <class T>
void run_chunk(const ssc::cuda::PerRowProblem<T>& p, const Tensor& parts, int splits,
               typename AccumulatorOf<T>::Type* logits, typename AccumulatorOf<T>::Type* loss,
               typename AccumulatorOf<T>::Type* peak, typename AccumulatorOf<T>::Type* lse,
               cudaStream_t stream) {
  using A = typename AccumulatorOf<T>::Type;
  auto* const of_splits = static_cast<ssc::cuda::RowPart<A>*>(parts.data_ptr());
  check_launch(ssc::cuda::score_rows(p, of_splits, splits, logits, stream), "score_rows");
  check_launch(ssc::cuda::finish_rows(p, of_splits, splits, loss, peak, lse, stream),
               "finish_rows");
}

template <class T>
Tensor room_for_parts(const OnDevice& device, int64_t rows, int splits) {
  constexpr int64_t kPart = sizeof(ssc::cuda::RowPart<typename AccumulatorOf<T>::Type>);
  return device.empty({std::max<int64_t>(rows * splits * kPart, 1)}, ScalarType::Byte);
}

RowSamples samples_of(const Operands& a, const Source& s) {
  if (!s.key.has_value()) return RowSamples(*s.ids, s.log_count, a);
  RowDrawer drawer(a.device, s.proposal);
  const RowDraws draws(a.device, *s.key, a.batch, s.num_drawable, s.num_samples, s.method, s.tries,
                       s.exclude, drawer.num_classes());
  STD_TORCH_CHECK(drawer.num_classes() <= static_cast<uint64_t>(a.classes), "the proposal has ",
                  drawer.num_classes(), " classes, weight only ", a.classes);
  return RowSamples(std::move(drawer), draws, s.corrected);
}

// The workspace of a chunk's pairs of row and sample.
struct PairLists {
  PairLists(const OnDevice& device, int64_t pairs, ScalarType dtype)
      : coefficients(device.empty({pairs}, dtype)),
        listed(device.empty({2, pairs}, ScalarType::Long)),
        sorted(device.empty({2, pairs}, ScalarType::Long)) {}

  // Sorts `count` listed pairs by class.
  void sort(const OnDevice& device, int64_t count, int64_t classes, int64_t room) {
    auto* const unsorted = data<int64_t>(listed);
    const auto run = [&](void* temporary, size_t& bytes) {
      check_launch(ssc::cuda::sort_classes(temporary, bytes, unsorted, unsorted + room, count,
                                           classes, data<int64_t>(sorted),
                                           data<int64_t>(sorted) + room, device.stream()),
                   "sort_classes");
    };
    size_t bytes = 0;
    run(nullptr, bytes);
    const Tensor temporary = device.empty({static_cast<int64_t>(bytes) + 1}, ScalarType::Byte);
    run(temporary.data_ptr(), bytes);
  }

  Tensor coefficients, listed, sorted;
};

}  // namespace

LossAndPeak per_row_rows(const Operands& a, const Rows& rows, const Source& source,
                         const Sum& sum) {
  RowSamples samples = samples_of(a, source);
  const Tensor loss = a.device.empty({a.batch}, a.row_dtype);
  const Tensor peak = a.device.empty({a.batch}, a.row_dtype);
  const cudaStream_t stream = a.device.stream();
  const int64_t most = chunk_rows(a.batch, samples.count(), samples.bytes());
  const int splits = ssc::cuda::row_splits(most, samples.count(), a.device.multiprocessors());
  samples.make_room(a.device, most);
  with_type(a.dtype, [&]<class T>(T*) {
    using A = typename AccumulatorOf<T>::Type;
    const Tensor parts = room_for_parts<T>(a.device, most, splits);
    for (int64_t first = 0; first < a.batch; first += most) {
      ssc::cuda::PerRowProblem<T> p =
          rows_problem<T>(a, rows, sum, first, std::min(most, a.batch - first));
      samples.fill(p, first, stream);
      run_chunk(p, parts, splits, static_cast<A*>(nullptr), data<A>(loss) + first,
                data<A>(peak) + first, nullptr, stream);
    }
  });
  return {loss, peak};
}

// Sparse gradients have min(C, B·S) rows, because how many classes are distinct is not known here:
// every class, or a row for each pair, of which the first of a class has its gradient and the
// others, for class 0, are zeros. Sums are kept in the accumulator's type and rounded once.
Grads per_row_grads(const Operands& a, const Rows& rows, const Source& source, const Sum& sum,
                    const Tensor& row_scale_tensor, bool sparse_grad) {
  RowSamples samples = samples_of(a, source);
  const OnDevice& device = a.device;
  const cudaStream_t stream = device.stream();
  const Tensor row_scale = a.row_numbers(row_scale_tensor, "row_scale");
  const int64_t pairs = a.batch * samples.count();
  const bool by_pair = sparse_grad && pairs < a.classes;
  const int64_t grad_size = by_pair ? pairs : a.classes;
  const int64_t accumulator = a.row_dtype == ScalarType::Double ? 8 : 4;
  constexpr int64_t kLists = 4 * 8 + 16;  // classes, entries, both sorted; what sorting takes
  // By pair there is one list: its size is the result's.
  const int64_t most =
      by_pair ? std::max<int64_t>(a.batch, 1)
              : chunk_rows(a.batch, samples.count(), samples.bytes() + accumulator + kLists);
  const int64_t room = most * samples.count();
  STD_TORCH_CHECK(room < int64_t{1} << 31, "a chunk of ", room, " samples must be below 2^31");
  const int splits = ssc::cuda::row_splits(most, samples.count(), device.multiprocessors());
  samples.make_room(device, most);
  const Tensor grad_input = device.empty({a.batch, a.dim}, a.dtype);
  Tensor weight_sums = device.empty({grad_size, a.dim}, a.row_dtype);
  Tensor bias_sums = device.empty({a.bias.has_value() ? grad_size : 0}, a.row_dtype);
  Tensor grad_rows = device.empty({1, sparse_grad ? grad_size : 0}, ScalarType::Long);
  torch::stable::zero_(weight_sums);
  torch::stable::zero_(bias_sums);
  if (by_pair) torch::stable::zero_(grad_rows);
  with_type(a.dtype, [&]<class T>(T*) {
    using A = typename AccumulatorOf<T>::Type;
    const Tensor parts = room_for_parts<T>(device, most, splits);
    const Tensor results = device.empty({3, most}, a.row_dtype);
    auto* const lse = data<A>(results) + 2 * most;
    PairLists lists(device, room, a.row_dtype);
    auto* const logits = data<A>(lists.coefficients);
    for (int64_t first = 0; first < a.batch; first += most) {
      ssc::cuda::PerRowProblem<T> p =
          rows_problem<T>(a, rows, sum, first, std::min(most, a.batch - first));
      samples.fill(p, first, stream);
      run_chunk(p, parts, splits, logits, data<A>(results), data<A>(results) + most, lse, stream);
      auto* const listed = data<int64_t>(lists.listed);
      check_launch(ssc::cuda::row_coefficients(p, lse, data<A>(row_scale) + first, logits, listed,
                                               listed + room, stream),
                   "row_coefficients");
      check_launch(
          ssc::cuda::row_input_grad(p, logits, data<T>(grad_input) + first * a.dim, a.dim, stream),
          "row_input_grad");
      const int64_t count = p.batch * p.samples;
      if (count == 0) continue;
      lists.sort(device, count, a.classes, room);
      const ssc::cuda::RowClassGrads<A> grads = {data<int64_t>(lists.sorted),
                                                 data<int64_t>(lists.sorted) + room,
                                                 count,
                                                 logits,
                                                 data<A>(weight_sums),
                                                 a.bias.has_value() ? data<A>(bias_sums) : nullptr,
                                                 by_pair ? data<int64_t>(grad_rows) : nullptr};
      check_launch(ssc::cuda::row_class_grads(p, grads, stream), "row_class_grads");
    }
  });
  if (sparse_grad && !by_pair) {
    check_launch(ssc::cuda::number_classes(a.classes, data<int64_t>(grad_rows), stream),
                 "number_classes");
  }
  const auto rounded = [&](const Tensor& sums) {
    return a.dtype == a.row_dtype ? sums : torch::stable::to(sums, a.dtype);
  };
  return {grad_input, rounded(weight_sums), rounded(bias_sums), grad_rows};
}

}  // namespace ssc::ops::cuda
