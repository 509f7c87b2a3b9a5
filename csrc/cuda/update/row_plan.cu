// The tasks and debts of the positions of an update, a lane each: a debt takes some hundred
// operations in double, which a warp per row would do 32 times. Of a position 25 bytes are written,
// or 49 in double, and 56 of the history read; of gradients only those of repeats are looked at. A
// GPU's sparse gradients have rows of zeros with id 0 in the place of a class's repeats, thousands
// perhaps.
#include <type_traits>

#include "csrc/cuda/device/grid.h"
#include "csrc/cuda/update/update.h"

namespace ssc::cuda {
namespace {

// Whether all elements of a row are +0. Bits: of an element. For whole warps.
template <class Bits>
__device__ __forceinline__ bool is_zero(const Bits* row, int64_t dim) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int64_t c = 0; c < dim; c += 32) {
    if (__any_sync(~0u, c + lane < dim && row[c + lane] != 0)) return false;
  }
  return true;
}

template <class Bits>
__global__ void __launch_bounds__(kElementThreads, 4)
    plan_rows_kernel(const __grid_constant__ PlannedRows update, const StepNumbers* numbers,
                     const __grid_constant__ RowPlan plan) {
  using T = std::conditional_t<sizeof(Bits) == 8, double, float>;  // of the update's arithmetic
  if (numbers->stopped) return;
  const bool steps = update.values != nullptr;
  const int64_t now = numbers->step.step;
  const int64_t due = steps ? now - 1 : now;  // what a row has to have paid up to
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kElementThreads;
  const int64_t start = static_cast<int64_t>(blockIdx.x) * kElementThreads + threadIdx.x - lane;
  for (int64_t base = start; base < plan.count; base += stride) {  // whole warps
    const int64_t at = base + lane, n = plan.begin + at;
    const bool there = at < plan.count;
    int64_t row = -1;
    if (there) row = update.ids == nullptr ? n : update.ids[n];
    const bool inside = row >= 0 && row < update.rows;
    const bool repeat = inside && plan.used != nullptr && n > 0 && update.ids[n - 1] == row;
    RowTask task = inside && !repeat ? RowTask::step : RowTask::none;
    if (task == RowTask::step && update.last_step != nullptr) {
      // Whoever comes first pays, if an id to be settled is there twice.
      const int64_t paid = atomicExch(update.last_step + row, static_cast<int32_t>(now));
      if (paid < due) {
        task = RowTask::pay;
        const Debt d = row_debts<ScalarLane>(numbers->options, update.history, due,
                                             paid_steps(update.history, paid, due));
        static_cast<Debts<T>*>(plan.debts)[at] = {
            static_cast<T>(d.keep),  static_cast<T>(d.beta1),     static_cast<T>(d.beta2),
            static_cast<T>(d.moves), static_cast<T>(d.eps_share), static_cast<T>(d.mixed)};
      } else if (!steps) {
        task = RowTask::none;
      }
    }
    if (there) plan.tasks[at] = task;
    if (plan.used == nullptr) continue;
    unsigned used = ~0u;
    for (unsigned repeats = __ballot_sync(~0u, repeat); repeats != 0; repeats &= repeats - 1) {
      const int other = __ffs(static_cast<int>(repeats)) - 1;
      const int64_t place = plan.begin + base + other;
      const int64_t source = update.order == nullptr ? place : update.order[place];
      const Bits* const gradient = static_cast<const Bits*>(update.values) + source * update.dim;
      if (is_zero(gradient, update.dim)) used &= ~(1u << other);
    }
    if (lane == 0) plan.used[base / 32] = used;
  }
}

}  // namespace

cudaError_t plan_rows(const PlannedRows& rows, const StepNumbers* numbers, const RowPlan& plan,
                      cudaStream_t stream) {
  const auto kernel = rows.value_bytes == 2   ? plan_rows_kernel<uint16_t>
                      : rows.value_bytes == 4 ? plan_rows_kernel<uint32_t>
                                              : plan_rows_kernel<uint64_t>;
  return launch(kernel, element_blocks(plan.count), kElementThreads, 0, stream, rows, numbers,
                plan);
}

}  // namespace ssc::cuda
