// Losses and gradients together, three matmuls in all: for a chunk of rows, z, E = exp(z − z_t) and
// dH in one sweep over the samples, then dWs = E^T (scaled H) from the E that is still there.
//
//   p_is = E_is / sum_i,  k_i = row_scale_i / τ
//   dH_i = k_i (Σ_s p_is W_s + (p_it − 1) W_t)
//   dW_s = Σ_i k_i p_is h_i,  and for the target  dW_t += k_i (p_it − 1) h_i
//   db likewise, with 1 for h_i
//
// The negatives' loss (NegativesForm) lacks the target's terms, and its E is the derivative of the
// sum's terms: p_is = E_is / sum_i for the softmax, E_is for softplus. There a class may be several
// samples, whose rows of dWs are added up when they are complete.
//
// p_it − 1 is taken as −(Σ_s E_is) / sum_i, which does not cancel when the row is nearly learnt.
#include <cstring>
#include <numeric>

#include "csrc/cpu/loss/row_steps.h"

namespace ssc {
namespace {

constexpr int64_t kChunkBytes = int64_t{56} << 20;   // of E, 64 MiB with padding, whatever B · S is
constexpr int64_t kPaddedBytes = int64_t{64} << 10;  // a panel of E from this size on is padded
constexpr int64_t kMaxChunkRows = 768;
constexpr int64_t kMostSamples = 32;  // of a panel, of whatever instruction set
constexpr int64_t kClassGrain = 64;   // classes that a thread takes at a time

template <class T>
class GradientPass {
 public:
  GradientPass(const LossProblem& problem, const SamplePlan& plan, const RowResults<T>& results,
               const Gradients<T>& gradients, Workspace& workspace, Isa isa,
               const ParallelFor& parallel_for)
      : problem_(problem),
        plan_(plan),
        results_(results),
        gradients_(gradients),
        workspace_(workspace),
        parallel_for_(parallel_for),
        kernels_(kernels_for(isa, problem, plan.distinct)),
        has_bias_(gradients.bias.data != nullptr),
        panels_(count_panels(kernels_, plan.distinct)) {}

  void run() {
    allocate_chunk();
    const Partition chunks = partition(plan_.rows, ceil_div(plan_.rows, most_rows_), kernels_.unit);
    panelwise_ = chunks.count == 1 && !in_place() && !plan_.uneven;
    place_outputs();
    for (int64_t c = 0; c < chunks.count; ++c) {
      const Range rows = piece(chunks, c);
      set_rows(chunk_, plan_, rows.begin, rows.end - rows.begin, kernels_, parallel_for_);
      if (problem_.negatives == nullptr) chunk_.hits.sample = plan_.hit + rows.begin;
      chunk_start_ = rows.begin;
      parallel_for_(chunk_.blocks.count, 1,
                    [&](int64_t begin, int64_t end) { sweep_blocks(begin, end); });
      parallel_for_(panels_, 1, [&](int64_t begin, int64_t end) {
        Workspace local;
        T* scratch = local.take<T>(filled_up(problem_.dim + 1, kernels_) * kernels_.panel);
        SummedRows sums = whole_;
        if (panelwise_) sums.data = local.take<T>(most_slots({begin, end}) * problem_.dim);
        for (int64_t p = begin; p < end; ++p) {
          if (panelwise_) {
            sums.first = slots_of(p).begin;
            clear_unsampled(sums, slots_of(p), p * kernels_.panel);
          }
          write_panel(sums, p, scratch, c > 0);
          add_targets(sums, p, rows);
          if (c + 1 == chunks.count) convert_rows(sums, slots_of(p));
        }
      });
    }
    if (chunks.count == 0) convert_rows(whole_, {0, plan_.touched_count});
    if (plan_.uneven) {
      parallel_for_(plan_.touched_count, kClassGrain,
                    [&](int64_t begin, int64_t end) { add_up_samples({begin, end}); });
    }
    convert_bias();
  }

 private:
  // Where the sums of dWs are: that of slot n at row row_of_slot_[n] or, without those, n − first.
  struct SummedRows {
    T* data;
    int64_t stride, first;
  };

  static int64_t count_panels(const LossKernels<T>& kernels, int64_t samples) {
    return std::max<int64_t>(ceil_div(samples, kernels.panel), 1);
  }

  // Bytes of E for a row in a panel.
  static int64_t row_bytes(const LossKernels<T>& kernels) {
    return kernels.panel / kernels.word * static_cast<int64_t>(sizeof(T));
  }

  // The kernels of tiles take 32 rows at least: where E of so many would be too large, for the number
  // of samples, those of pairs serve, which can do with two.
  static const LossKernels<T>& kernels_for(Isa isa, const LossProblem& problem, int64_t samples) {
    const LossKernels<T>& kernels = ssc::kernels_for<T>(isa, problem);
    const int64_t least = kernels.unit * count_panels(kernels, samples) * row_bytes(kernels);
    const bool too_large = isa == Isa::amx_bf16 && least > kChunkBytes;
    return too_large ? ssc::kernels_for<T>(Isa::avx512_bf16, problem) : kernels;
  }

  void allocate_chunk() {
    const int64_t row_bytes = GradientPass::row_bytes(kernels_);
    most_rows_ = std::clamp<int64_t>(kChunkBytes / (panels_ * row_bytes), 1, kMaxChunkRows);
    most_rows_ = std::max<int64_t>(most_rows_ / kernels_.unit, 1) * kernels_.unit;
    const int64_t rows = filled_up(std::min(most_rows_, plan_.rows), kernels_);
    const int64_t columns = problem_.dim + has_bias_;
    padded_dim_ = ceil_div(problem_.dim, kernels_.panel) * kernels_.panel;
    chunk_ = take_chunk(rows, problem_.dim, kernels_, workspace_);
    chunk_.grads.columns = partition(columns, ceil_div(columns, kernels_.tile_rows));
    chunk_.grads.input = workspace_.take<T>(rows * padded_dim_);
    chunk_.grads.scaled_input =
        workspace_.take<T>(rows / kernels_.word * filled_up(columns, kernels_));
    chunk_.grads.coefficient = workspace_.take<T>(rows);
    target_coefficient_ = workspace_.take<T>(rows);
    // The same row of consecutive panels should not fall into the same sets of L1: let a panel's
    // stride be one register tile past a multiple of 4 KiB.
    int64_t stride = rows * row_bytes;
    if (stride >= kPaddedBytes)
      stride = ceil_div(stride, 4096) * 4096 + kernels_.tile_rows * row_bytes;
    chunk_.grads.exps_stride = stride / static_cast<int64_t>(sizeof(T));
    chunk_.grads.exps = workspace_.take<T>(panels_ * chunk_.grads.exps_stride);
  }

  // Sums are gathered in T: in place where the parameter has that type, else in a copy that
  // convert_rows writes out, or add_up_samples, for which each sample has a row of its own there. Of
  // a single chunk the copy is no more than a panel's, and stays in cache (panelwise_).
  bool in_place() const {
    return element_size(gradients_.weight.dtype) == sizeof(T) && !plan_.uneven;
  }

  void place_outputs() {
    row_of_slot_ = in_place() && !gradients_.sparse ? plan_.touched : nullptr;
    if (in_place()) {
      whole_ = {static_cast<T*>(const_cast<void*>(gradients_.weight.data)),
                gradients_.weight.stride, 0};
    } else {
      whole_ = {nullptr, problem_.dim, 0};
      if (!panelwise_) whole_.data = workspace_.take<T>(summed_rows() * problem_.dim);
    }
    if (has_bias_) bias_grad_ = workspace_.take<T>(summed_rows());
    if (plan_.uneven) {
      place_samples();
      return;
    }
    sample_slot_ = plan_.slot;
    sample_row_ = row_of_slot_ != nullptr ? plan_.ids : plan_.slot;

    if (!panelwise_) clear_unsampled(whole_, {0, plan_.touched_count}, 0);
  }

  // write_panel stores the samples' rows; those that only targets add to start at 0. next_sample: the
  // first that may be in these slots.
  void clear_unsampled(const SummedRows& sums, Range slots, int64_t next_sample) {
    for (int64_t n = slots.begin; n < slots.end; ++n) {
      if (next_sample < plan_.distinct && plan_.slot[next_sample] == n) {
        ++next_sample;
        if (plan_.rows > 0) continue;  // with no row at all, nothing is stored
      }
      std::fill_n(weight_row(sums, n), problem_.dim, T(0));
      if (has_bias_) bias_grad_[n] = 0;
    }
  }

  int64_t summed_rows() const { return plan_.uneven ? plan_.distinct : plan_.touched_count; }

  void place_samples() {
    auto* own = workspace_.take<int64_t>(plan_.distinct);
    std::iota(own, own + plan_.distinct, 0);
    sample_slot_ = sample_row_ = own;
    if (plan_.rows > 0) return;
    std::fill_n(whole_.data, plan_.distinct * problem_.dim, T(0));
    if (has_bias_) std::fill_n(bias_grad_, plan_.distinct, T(0));
  }

  T* weight_row(const SummedRows& sums, int64_t slot) const {
    const int64_t row = row_of_slot_ == nullptr ? slot - sums.first : row_of_slot_[slot];
    return sums.data + row * sums.stride;
  }

  void sweep_blocks(int64_t begin, int64_t end) {
    Workspace local;
    const Tile<T> tile = take_tile(problem_.dim, true, kernels_, local);
    const Samples samples = distinct_samples(problem_, plan_);
    const Range rows =
        start_rows(problem_, samples, plan_, chunk_start_, chunk_, begin, end, results_, kernels_);
    if (plan_.distinct == 0) {
      std::fill_n(chunk_.grads.input + rows.begin * padded_dim_,
                  (rows.end - rows.begin) * padded_dim_, T(0));
    }
    kernels_.sweep(samples, tile, chunk_, begin, end);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const RowSums sums = end_row(problem_, plan_, chunk_start_, chunk_, i, results_, kernels_);
      const int64_t row = chunk_.row_ids[i];
      const double k = gradients_.row_scale[row] * problem_.inv_temperature;
      const bool own_target = problem_.negatives == nullptr;
      target_coefficient_[i] = own_target ? static_cast<T>(-k * (sums.sampled / sums.total)) : T(0);
      prefetch_target(problem_, chunk_, i + kPrefetchRows, rows.end);
      chunk_.grads.coefficient[i] = static_cast<T>(k / sums.total);
      kernels_.finish_row(problem_.weight, chunk_, i, problem_.dim,
                          own_target ? problem_.target[row] : -1, target_coefficient_[i],
                          gradients_.input);
    }
    kernels_.pack_grad_rows(problem_.input, chunk_, rows, problem_.dim);
  }

  void write_panel(const SummedRows& sums, int64_t panel, T* scratch, bool accumulate) {
    const int64_t first = panel * kernels_.panel;
    const int64_t count = std::min<int64_t>(kernels_.panel, plan_.distinct - first);
    if (count <= 0) return;
    int64_t rows[kMostSamples];
    for (int64_t s = 0; s < count; ++s) rows[s] = sample_row_[first + s] - sums.first;
    kernels_.weight_grad(chunk_, problem_.dim, rows, count, panel, accumulate, sums.data,
                         sums.stride, scratch);
    if (!has_bias_) return;
    const T* of_bias = scratch + problem_.dim * kernels_.panel;
    for (int64_t s = 0; s < count; ++s) {
      T& to = bias_grad_[sample_slot_[first + s]];
      to = (accumulate ? to : T(0)) + of_bias[s];
    }
  }

  // The slots from a panel's first sample up to the next panel's: panels own disjoint ranges of
  // them, so no two threads meet.
  Range slots_of(int64_t panel) const {
    const auto first = [&](int64_t p) {
      return p == 0 ? 0 : p == panels_ ? plan_.touched_count : plan_.slot[p * kernels_.panel];
    };
    return {first(panel), first(panel + 1)};
  }

  // The most slots that one of these panels has.
  int64_t most_slots(Range panels) const {
    int64_t most = 0;
    for (int64_t p = panels.begin; p < panels.end; ++p) {
      most = std::max(most, slots_of(p).end - slots_of(p).begin);
    }
    return most;
  }

  // The contributions of this chunk's targets to the panel's slots.
  void add_targets(const SummedRows& sums, int64_t panel, Range rows) {
    const Range own = slots_of(panel);
    const int64_t* slots = plan_.by_target_slot;
    const int64_t* begin = std::lower_bound(slots, slots + plan_.targets, own.begin);
    for (int64_t j = begin - slots; j < plan_.targets && slots[j] < own.end; ++j) {
      const int64_t i = plan_.by_target[j];
      if (i < rows.begin || i >= rows.end) continue;
      const T coefficient = target_coefficient_[i - rows.begin];
      kernels_.add_row(problem_.input, plan_.row_ids[i], problem_.dim, coefficient,
                       weight_row(sums, slots[j]));
      if (has_bias_) bias_grad_[slots[j]] += coefficient;
    }
  }

  int64_t output_row(int64_t slot) const { return gradients_.sparse ? slot : plan_.touched[slot]; }

  // Writes out complete rows of the copy, while they are in cache.
  void convert_rows(const SummedRows& sums, Range slots) {
    if (in_place() || plan_.uneven) return;
    for (int64_t n = slots.begin; n < slots.end; ++n) convert_row(weight_row(sums, n), n);
  }

  void convert_row(const T* from, int64_t slot) {
    kernels_.convert(from, const_cast<char*>(gradients_.weight.row(output_row(slot))),
                     gradients_.weight.dtype, problem_.dim);
  }

  // The gradient of a class without samples.
  void clear_row(int64_t slot) {
    const int64_t row = output_row(slot), size = element_size(gradients_.weight.dtype);
    std::memset(const_cast<char*>(gradients_.weight.row(row)), 0,
                static_cast<size_t>(problem_.dim * size));
    if (!has_bias_) return;
    const int64_t bias_size = element_size(gradients_.bias.dtype);
    std::memset(static_cast<char*>(const_cast<void*>(gradients_.bias.data)) + row * bias_size, 0,
                static_cast<size_t>(bias_size));
  }

  // Writes out the gradients of classes [begin, end), each the sum of its samples' rows.
  void add_up_samples(Range classes) {
    const int64_t* const slots_end = plan_.slot + plan_.distinct;
    const MatrixView rows = {whole_.data, whole_.stride, sizeof(T) == 8 ? DType::f64 : DType::f32};
    int64_t s = std::lower_bound<const int64_t*>(plan_.slot, slots_end, classes.begin) - plan_.slot;
    for (int64_t n = classes.begin; n < classes.end; ++n) {
      if (s == plan_.distinct || plan_.slot[s] > n) {
        clear_row(n);
        continue;
      }
      const int64_t first = s++;
      for (; s < plan_.distinct && plan_.slot[s] == n; ++s) {
        kernels_.add_row(rows, s, problem_.dim, T(1), weight_row(whole_, first));
        if (has_bias_) bias_grad_[first] += bias_grad_[s];
      }
      convert_row(weight_row(whole_, first), n);
      if (has_bias_) convert_bias_of(first, n);
    }
  }

  void convert_bias() {
    if (!has_bias_ || plan_.uneven) return;
    for (int64_t n = 0; n < plan_.touched_count; ++n) convert_bias_of(n, n);
  }

  void convert_bias_of(int64_t from, int64_t slot) {
    char* bias = static_cast<char*>(const_cast<void*>(gradients_.bias.data));
    kernels_.convert(bias_grad_ + from,
                     bias + output_row(slot) * element_size(gradients_.bias.dtype),
                     gradients_.bias.dtype, 1);
  }

  const LossProblem& problem_;
  const SamplePlan& plan_;
  const RowResults<T>& results_;
  const Gradients<T>& gradients_;
  Workspace& workspace_;
  const ParallelFor& parallel_for_;
  const LossKernels<T>& kernels_;
  const bool has_bias_;
  const int64_t panels_;  // of samples; at least one, which the targets' rows hang on

  RowChunk<T> chunk_{};
  int64_t most_rows_ = 0, padded_dim_ = 0;
  int64_t chunk_start_ = 0;          // the chunk's first row in plan_.row_ids
  T* target_coefficient_ = nullptr;  // k_i (p_it − 1) of the chunk's rows
  SummedRows whole_ = {};            // of all slots, but where panelwise_
  bool panelwise_ = false;
  const int64_t* row_of_slot_ = nullptr;
  const int64_t* sample_row_ = nullptr;   // [distinct] row of each sample in whole_
  const int64_t* sample_slot_ = nullptr;  // [distinct] its place in bias_grad_
  T* bias_grad_ = nullptr;                // [summed_rows()]
};

}  // namespace

template <class T>
void loss_and_grads(const LossProblem& problem, const SamplePlan& plan,
                    const RowResults<T>& results, const Gradients<T>& gradients,
                    Workspace& workspace, Isa isa, const ParallelFor& parallel_for) {
  GradientPass<T>(problem, plan, results, gradients, workspace, isa, parallel_for).run();
}

template void loss_and_grads(const LossProblem&, const SamplePlan&, const RowResults<float>&,
                             const Gradients<float>&, Workspace&, Isa, const ParallelFor&);
template void loss_and_grads(const LossProblem&, const SamplePlan&, const RowResults<double>&,
                             const Gradients<double>&, Workspace&, Isa, const ParallelFor&);

}  // namespace ssc
