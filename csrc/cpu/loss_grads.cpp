// Losses and gradients together, three matmuls in all: for a chunk of rows, z, E = exp(z − z_t) and
// dH in one sweep over the samples, then dWs = E^T (scaled H) from the E that is still there.
//
//   p_is = E_is / sum_i,  k_i = row_scale_i / τ
//   dH_i = k_i (Σ_s p_is W_s + (p_it − 1) W_t)
//   dW_s = Σ_i k_i p_is h_i,  and for the target  dW_t += k_i (p_it − 1) h_i;  db likewise with h =
//   1
//
// p_it − 1 is taken as −(Σ_s E_is) / sum_i, which does not cancel when the row is nearly learnt.
#include "csrc/cpu/loss_steps.h"

namespace ssc {
namespace {

constexpr int64_t kChunkBytes = int64_t{64} << 20;  // of E, whatever B · S is
constexpr int64_t kMaxChunkRows = 768;

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
        leaf_(loss_leaf<T>(isa)),
        has_bias_(gradients.bias.data != nullptr),
        grad_blocks_(ceil_div(problem.dim + has_bias_, leaf_.tile_rows)) {}

  void run() {
    packed_ = take_packed(plan_.distinct, problem_.dim, true, leaf_, workspace_);
    pack_samples(problem_, plan_.ids, plan_.log_count, 0, plan_.distinct, packed_, leaf_,
                 parallel_for_);
    take_chunk();
    place_outputs();
    const int64_t chunks = ceil_div(plan_.rows, most_rows_);
    for (int64_t c = 0; c < chunks; ++c) {
      const Range rows = piece(plan_.rows, chunks, c);
      chunk_.rows = rows.end - rows.begin;
      chunk_.blocks = count_blocks(chunk_.rows, leaf_, parallel_for_);
      chunk_.row_ids = plan_.row_ids + rows.begin;
      chunk_.hit = plan_.hit + rows.begin;
      parallel_for_(chunk_.blocks, 1,
                    [&](int64_t begin, int64_t end) { sweep_blocks(begin, end); });
      const int64_t panels = std::max<int64_t>(packed_.panels, 1);  // targets want one at least
      parallel_for_(panels, 1, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
          write_panel(p, scratch_ + begin * (problem_.dim + 1) * leaf_.panel, c > 0);
          add_targets(p, panels, rows);
        }
      });
    }
    convert_outputs();
  }

 private:
  void take_chunk() {
    const int64_t row_bytes =
        std::max<int64_t>(packed_.panels, 1) * leaf_.panel * static_cast<int64_t>(sizeof(T));
    most_rows_ = std::clamp<int64_t>(kChunkBytes / row_bytes, 1, kMaxChunkRows);
    const int64_t rows = std::min(most_rows_, plan_.rows);
    chunk_.packed = workspace_.take<T>(rows * problem_.dim);
    chunk_.reference = workspace_.take<T>(rows);
    chunk_.settled = workspace_.take<double>(rows);
    chunk_.sum = workspace_.take<T>(rows * leaf_.lanes);
    chunk_.peak = workspace_.take<T>(rows * leaf_.lanes);
    chunk_.grad_input = workspace_.take<T>(rows * packed_.padded_dim);
    chunk_.grad_scaled = workspace_.take<T>(rows * (problem_.dim + 1));
    target_coefficient_ = workspace_.take<T>(rows);
    // The same row of consecutive panels should not fall into the same sets of L1: let a panel's
    // stride be one register tile past a multiple of 4 KiB.
    const int64_t row = leaf_.panel * static_cast<int64_t>(sizeof(T));
    const int64_t stride = ceil_div(rows * row, 4096) * 4096 + leaf_.tile_rows * row;
    chunk_.exps_stride = stride / static_cast<int64_t>(sizeof(T));
    chunk_.exps = workspace_.take<T>(packed_.panels * chunk_.exps_stride);
    scratch_ =
        workspace_.take<T>(std::max<int64_t>(packed_.panels, 1) * (problem_.dim + 1) * leaf_.panel);
  }

  // Sums are gathered in T: in place where the parameter has that type, else in a copy that
  // convert_outputs writes out.
  void place_outputs() {
    const bool in_place = element_size(gradients_.weight.dtype) == sizeof(T);
    row_of_slot_ = in_place && !gradients_.sparse ? plan_.touched : nullptr;
    if (in_place) {
      weight_grad_ = static_cast<T*>(const_cast<void*>(gradients_.weight.data));
      weight_stride_ = gradients_.weight.stride;
    } else {
      weight_grad_ = workspace_.take<T>(plan_.touched_count * problem_.dim);
      weight_stride_ = problem_.dim;
    }
    if (has_bias_) bias_grad_ = workspace_.take<T>(plan_.touched_count);
    sample_row_ = plan_.slot;
    if (row_of_slot_ != nullptr) sample_row_ = plan_.ids;

    // write_panel stores the samples' rows; those that only targets add to start at 0.
    int64_t next_sample = 0;
    for (int64_t n = 0; n < plan_.touched_count; ++n) {
      if (next_sample < plan_.distinct && plan_.slot[next_sample] == n) {
        ++next_sample;
        if (plan_.rows > 0) continue;  // with no row at all, nothing is stored
      }
      std::fill_n(weight_row(n), problem_.dim, T(0));
      if (has_bias_) bias_grad_[n] = 0;
    }
  }

  T* weight_row(int64_t slot) const {
    return weight_grad_ + (row_of_slot_ == nullptr ? slot : row_of_slot_[slot]) * weight_stride_;
  }

  void sweep_blocks(int64_t begin, int64_t end) {
    const Range rows = {piece(chunk_.rows, chunk_.blocks, begin).begin,
                        piece(chunk_.rows, chunk_.blocks, end - 1).end};
    for (int64_t b = begin; b < end; ++b) leaf_.pack_rows(problem_.input, chunk_, problem_.dim, b);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int64_t row = chunk_.row_ids[i];
      results_.target_logit[row] = target_logit<T>(problem_, row, leaf_);
      start_row(chunk_, i, results_.target_logit[row], leaf_);
      if (packed_.panels == 0) {
        std::fill_n(chunk_.grad_input + i * packed_.padded_dim, packed_.padded_dim, T(0));
      }
    }
    leaf_.sweep(packed_, chunk_, static_cast<T>(problem_.inv_temperature), begin, end);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const RowSums sums = end_row(chunk_, i, results_, leaf_);
      const int64_t row = chunk_.row_ids[i];
      const double k = gradients_.row_scale[row] * problem_.inv_temperature;
      target_coefficient_[i] = static_cast<T>(-k * (sums.sampled / sums.total));
      leaf_.finish_row(problem_.input, problem_.weight, chunk_, i, problem_.dim, grad_blocks_,
                       has_bias_, problem_.target[row], static_cast<T>(k / sums.total),
                       target_coefficient_[i], gradients_.input);
    }
  }

  void write_panel(int64_t panel, T* scratch, bool accumulate) {
    const int64_t first = panel * leaf_.panel;
    const int64_t count = std::min<int64_t>(leaf_.panel, plan_.distinct - first);
    if (count <= 0) return;
    leaf_.weight_grad(packed_, chunk_, grad_blocks_, has_bias_, sample_row_ + first, count, panel,
                      accumulate, weight_grad_, weight_stride_, scratch);
    if (!has_bias_) return;
    const T* sums = scratch + problem_.dim * leaf_.panel;
    for (int64_t s = 0; s < count; ++s) {
      T& to = bias_grad_[plan_.slot[first + s]];
      to = (accumulate ? to : T(0)) + sums[s];
    }
  }

  // The contributions of this chunk's targets to the rows that follow panel's first sample, up to
  // the next panel's: panels own disjoint ranges of slots, so no two threads meet.
  void add_targets(int64_t panel, int64_t panels, Range rows) {
    const auto slot_of = [&](int64_t p) {
      return p == 0 ? 0 : p == panels ? plan_.touched_count : plan_.slot[p * leaf_.panel];
    };
    const int64_t* slots = plan_.by_target_slot;
    const int64_t* begin = std::lower_bound(slots, slots + plan_.rows, slot_of(panel));
    const int64_t end_slot = slot_of(panel + 1);
    for (int64_t j = begin - slots; j < plan_.rows && slots[j] < end_slot; ++j) {
      const int64_t i = plan_.by_target[j];
      if (i < rows.begin || i >= rows.end) continue;
      const T coefficient = target_coefficient_[i - rows.begin];
      leaf_.add_row(problem_.input, plan_.row_ids[i], problem_.dim, coefficient,
                    weight_row(slots[j]));
      if (has_bias_) bias_grad_[slots[j]] += coefficient;
    }
  }

  void convert_outputs() {
    const auto row_of = [&](int64_t n) { return gradients_.sparse ? n : plan_.touched[n]; };
    if (element_size(gradients_.weight.dtype) != sizeof(T)) {
      parallel_for_(plan_.touched_count, 64, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
          leaf_.convert(weight_row(n), const_cast<char*>(gradients_.weight.row(row_of(n))),
                        gradients_.weight.dtype, problem_.dim);
        }
      });
    }
    if (!has_bias_) return;
    char* bias = static_cast<char*>(const_cast<void*>(gradients_.bias.data));
    for (int64_t n = 0; n < plan_.touched_count; ++n) {
      leaf_.convert(bias_grad_ + n, bias + row_of(n) * element_size(gradients_.bias.dtype),
                    gradients_.bias.dtype, 1);
    }
  }

  const LossProblem& problem_;
  const SamplePlan& plan_;
  const RowResults<T>& results_;
  const Gradients<T>& gradients_;
  Workspace& workspace_;
  const ParallelFor& parallel_for_;
  const LossLeaf<T>& leaf_;
  const bool has_bias_;
  const int64_t grad_blocks_;

  PackedSamples<T> packed_{};
  RowChunk<T> chunk_{};
  int64_t most_rows_ = 0;
  T* target_coefficient_ = nullptr;  // k_i (p_it − 1) of the chunk's rows
  T* scratch_ = nullptr;
  T* weight_grad_ = nullptr;  // row of slot n at (row_of_slot_ ? row_of_slot_[n] : n)
  int64_t weight_stride_ = 0;
  const int64_t* row_of_slot_ = nullptr;
  const int64_t* sample_row_ = nullptr;  // [distinct] row of each sample in weight_grad_
  T* bias_grad_ = nullptr;               // [touched_count]
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
