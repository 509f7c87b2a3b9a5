// Chunk by chunk of rows: each row's samples in one sweep (per_row/table.h), which gives dH and the
// coefficients c of the weight gradient, then those sorted by class and added (per_row/scatter.h).
//
//   softmax: c_is = k_i p_is dz/dx,  p_is = exp(z_is − r_i) / (1 + Σ_s exp(z_is − r_i))
//   sigmoid: c_is = k_i dz/dx / (1 + exp −z_is)
//   dH_i = Σ_s c_is W_s,  dW_s = Σ_i c_is h_i,  db_s = Σ_i c_is,  k_i = row_scale_i / τ
#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>

#include "csrc/cpu/per_row/per_row.h"
#include "csrc/cpu/per_row/samples.h"
#include "csrc/cpu/per_row/scatter.h"

namespace ssc {
namespace {

// The limits of a chunk of rows, whatever B and S are, unless a single row takes more: its entries
// twice, and its rows of H.
constexpr int64_t kChunkEntries = int64_t{1} << 18;
constexpr int64_t kChunkInputBytes = int64_t{2} << 20;

template <class T>
int64_t chunk_rows(const PerRowProblem<T>& problem, int64_t count) {
  const int64_t by_entries = kChunkEntries / std::max<int64_t>(problem.samples.num_samples, 1);
  const int64_t by_input = kChunkInputBytes / (problem.dim * static_cast<int64_t>(sizeof(T)));
  return std::clamp<int64_t>(std::min(by_entries, by_input), 1, std::max<int64_t>(count, 1));
}

template <class T>
class PerRowPass {
 public:
  PerRowPass(const PerRowProblem<T>& problem, const PerRowGradients<T>& gradients,
             const ParallelFor& parallel_for)
      : problem_(problem),
        gradients_(gradients),
        parallel_for_(parallel_for),
        kernels_(per_row_kernels<T>(active_isa())),
        rows_(workspace_.take<int64_t>(problem.batch)),
        count_(counted_rows(problem, rows_)),
        most_rows_(chunk_rows(problem, count_)),
        h_(workspace_.take<T>(most_rows_ * problem.dim)),
        scatter_(most_rows_, problem.samples.num_samples, problem.classes, workspace_) {}

  void run() {
    place_outputs();
    const GradSlots slots = {gradients_.touched, gradients_.slots};
    for (int64_t start = 0; start < count_; start += most_rows_) {
      const int64_t rows = std::min(most_rows_, count_ - start);
      parallel_for_(rows, 1, [&](int64_t begin, int64_t end) { sweep(start, begin, end); });
      scatter_.add(rows, h_, problem_.dim, slots, weight_grad_, weight_stride_, bias_grad_,
                   kernels_, parallel_for_);
    }
    write_outputs();
  }

 private:
  // Sums are gathered in T: in place where the result has that type and its rows are the slots,
  // else in a copy.
  bool in_place() const {
    return element_size(gradients_.weight.dtype) == sizeof(T) &&
           (gradients_.sparse || gradients_.touched == nullptr);
  }

  void place_outputs() {
    weight_grad_ = static_cast<T*>(const_cast<void*>(gradients_.weight.data));
    weight_stride_ = gradients_.weight.stride;
    if (!in_place()) {
      weight_grad_ = workspace_.take<T>(gradients_.slots * problem_.dim);
      weight_stride_ = problem_.dim;
      parallel_for_(gradients_.slots, kGrain, [&](int64_t begin, int64_t end) {
        std::fill_n(weight_grad_ + begin * problem_.dim, (end - begin) * problem_.dim, T(0));
      });
    }
    if (gradients_.bias.data == nullptr) return;
    bias_grad_ = workspace_.take<T>(gradients_.slots);
    std::fill_n(bias_grad_, gradients_.slots, T(0));
  }

  // Rows [begin, end) of the chunk that starts at rows_[start].
  void sweep(int64_t start, int64_t begin, int64_t end) {
    const int64_t samples = problem_.samples.num_samples;
    Workspace local;
    T* coefficient = local.take<T>(samples);
    T* grad = local.take<T>(std::max<int64_t>(problem_.dim, kernels_.lanes));
    const RowScore<T> score = {problem_.weight, problem_.dim,
                               static_cast<T>(problem_.inv_temperature),
                               static_cast<T>(problem_.softcap)};
    RowSource<T> source(problem_, rows_ + start + begin, end - begin);
    typename RowSource<T>::Row row;
    for (int64_t ahead = 0, i = begin; source.next(row, ahead); ++i) {
      T* h = h_ + i * problem_.dim;
      kernels_.load_row(problem_.input, row.row, problem_.dim, h);
      const RowSamples<T> of_row = {h, row.ids, row.count, ahead, row.bias, row.log_count};
      T factor = static_cast<T>(gradients_.row_scale[row.row] * problem_.inv_temperature);
      const T total = sweep_row(score, of_row, problem_.target_logit[row.row], coefficient, grad);
      if (!problem_.sigmoid) factor /= total;
      kernels_.write_row(gradients_.input, row.row, problem_.dim, factor, grad);
      GradEntry<T>* entries = scatter_.row_entries(i);
      for (int64_t s = 0; s < row.count; ++s) {
        entries[s] = {row.ids[s], static_cast<int32_t>(i), coefficient[s] * factor};
      }
      scatter_.set_count(i, row.count);
    }
  }

  // The row's sweep, from its own r as the reference point of exp or, if some sample is too far
  // above that, from the largest logit. Returns 1 + Σ exp(z − r), relative to that point.
  T sweep_row(const RowScore<T>& score, const RowSamples<T>& row, T r, T* coefficient, T* grad) {
    const RowSum<T> sum = kernels_.grads(score, row, r, problem_.sigmoid, coefficient, grad);
    if (problem_.sigmoid || !(sum.peak > kernels_.exp_ceiling)) {
      return T(1) + sum.sum + (r - r);  // NaN where the loss is
    }
    kernels_.score(score, row, coefficient);
    const T most = kernels_.maximum(coefficient, row.count);
    return std::exp(r - most) +
           kernels_.grads(score, row, most, problem_.sigmoid, coefficient, grad).sum;
  }

  void write_outputs() {
    const int64_t dim = problem_.dim;
    const auto row_of = [&](int64_t slot) {
      return gradients_.sparse || gradients_.touched == nullptr ? slot : gradients_.touched[slot];
    };
    if (!in_place()) {
      parallel_for_(gradients_.slots, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
          kernels_.convert(weight_grad_ + n * dim,
                           const_cast<char*>(gradients_.weight.row(row_of(n))),
                           gradients_.weight.dtype, dim);
        }
      });
    }
    if (bias_grad_ == nullptr) return;
    char* bias = static_cast<char*>(const_cast<void*>(gradients_.bias.data));
    for (int64_t n = 0; n < gradients_.slots; ++n) {
      kernels_.convert(bias_grad_ + n, bias + row_of(n) * element_size(gradients_.bias.dtype),
                       gradients_.bias.dtype, 1);
    }
  }

  static constexpr int64_t kGrain = 256;  // rows of a gradient worth a thread

  const PerRowProblem<T>& problem_;
  const PerRowGradients<T>& gradients_;
  const ParallelFor& parallel_for_;
  const PerRowKernels<T>& kernels_;
  Workspace workspace_;
  int64_t* rows_;  // those that count
  int64_t count_;
  int64_t most_rows_;  // of a chunk
  T* h_;               // [most_rows_, dim]
  GradScatter<T> scatter_;
  T* weight_grad_ = nullptr;  // [slots, weight_stride_]
  int64_t weight_stride_ = 0;
  T* bias_grad_ = nullptr;  // [slots]
};

// f(i, row) for rows[i], i < count, on all threads.
template <class T, class F>
void for_each_row(const PerRowProblem<T>& problem, const int64_t* rows, int64_t count,
                  const ParallelFor& parallel_for, F&& f) {
  parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    RowSource<T> source(problem, rows + begin, end - begin);
    typename RowSource<T>::Row row;
    for (int64_t ahead = 0, i = begin; source.next(row, ahead); ++i) f(i, row);
  });
}

// The classes of these rows' samples, by a bit for each class.
template <class T>
std::vector<int64_t> marked_classes(const PerRowProblem<T>& problem, const int64_t* rows,
                                    int64_t count, const ParallelFor& parallel_for) {
  constexpr int64_t kBits = 64;
  std::vector<uint64_t> words(static_cast<size_t>((problem.classes + kBits - 1) / kBits));
  for_each_row(problem, rows, count, parallel_for, [&](int64_t, const auto& row) {
    for (int64_t s = 0; s < row.count; ++s) {
      const std::atomic_ref<uint64_t> word(words[static_cast<size_t>(row.ids[s] / kBits)]);
      const uint64_t bit = uint64_t{1} << (row.ids[s] % kBits);
      if ((word.load(std::memory_order_relaxed) & bit) == 0) {
        word.fetch_or(bit, std::memory_order_relaxed);
      }
    }
  });
  int64_t marked = 0;
  for (const uint64_t word : words) marked += std::popcount(word);
  std::vector<int64_t> touched(static_cast<size_t>(marked));
  int64_t* next = touched.data();
  for (size_t w = 0; w < words.size(); ++w) {
    for (uint64_t rest = words[w]; rest != 0; rest &= rest - 1) {
      *next++ = static_cast<int64_t>(w) * kBits + std::countr_zero(rest);
    }
  }
  return touched;
}

}  // namespace

template <class T>
std::vector<int64_t> touched_classes(const PerRowProblem<T>& problem,
                                     const ParallelFor& parallel_for) {
  Workspace workspace;
  int64_t* rows = workspace.take<int64_t>(problem.batch);
  const int64_t count = counted_rows(problem, rows);
  const int64_t samples = problem.samples.num_samples;
  if (problem.classes <= 8 * count * samples) {  // B·S bytes of a bit for each class
    return marked_classes(problem, rows, count, parallel_for);
  }
  const int64_t most = chunk_rows(problem, count);
  int64_t* ids = workspace.take<int64_t>(most * samples);
  int64_t* counts = workspace.take<int64_t>(most);
  std::vector<int64_t> touched;  // distinct and sorted up to `sorted`, as they came beyond
  size_t sorted = 0;
  const auto compact = [&] {
    const auto middle = touched.begin() + static_cast<std::ptrdiff_t>(sorted);
    std::sort(middle, touched.end());
    std::inplace_merge(touched.begin(), middle, touched.end());
    touched.erase(std::unique(touched.begin(), touched.end()), touched.end());
    sorted = touched.size();
  };
  for (int64_t start = 0; start < count; start += most) {
    const int64_t chunk = std::min(most, count - start);
    for_each_row(problem, rows + start, chunk, parallel_for, [&](int64_t i, const auto& row) {
      std::copy_n(row.ids, row.count, ids + i * samples);
      counts[i] = row.count;
    });
    for (int64_t i = 0; i < chunk; ++i) {
      touched.insert(touched.end(), ids + i * samples, ids + i * samples + counts[i]);
    }
    // Rarely, so that merging takes no more than sorting; and N distinct ones stay O(N) memory.
    if (touched.size() > 2 * sorted + static_cast<size_t>(kChunkEntries)) compact();
  }
  compact();
  return touched;
}

template <class T>
void per_row_grads(const PerRowProblem<T>& problem, const PerRowGradients<T>& gradients,
                   const ParallelFor& parallel_for) {
  PerRowPass<T>(problem, gradients, parallel_for).run();
}

template std::vector<int64_t> touched_classes(const PerRowProblem<float>&, const ParallelFor&);
template std::vector<int64_t> touched_classes(const PerRowProblem<double>&, const ParallelFor&);
template void per_row_grads(const PerRowProblem<float>&, const PerRowGradients<float>&,
                            const ParallelFor&);
template void per_row_grads(const PerRowProblem<double>&, const PerRowGradients<double>&,
                            const ParallelFor&);

}  // namespace ssc
