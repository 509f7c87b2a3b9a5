// The start and the end of an optimizer's step: a thread, and a block. A step without gradient adds
// to the debts of the last `horizon` steps, 56 bytes each.
#include "csrc/cuda/update/arithmetic.h"
#include "csrc/cuda/update/update.h"

namespace ssc::cuda {
namespace {

using A = Arithmetic;

constexpr int kThreads = 256;

// The options are no __grid_constant__, or nvcc would store them as they came (check_kernels.py).
__global__ void __launch_bounds__(32)
    begin_step_kernel(const UpdateOptions o, const __grid_constant__ StepInputs inputs, bool steps,
                      StepNumbers* numbers) {
  if (threadIdx.x != 0) return;
  const double lr = inputs.lr == nullptr ? o.lr : *inputs.lr;
  const double scale = inputs.grad_scale == nullptr ? o.gradient_scale
                                                    : A::div(o.gradient_scale, *inputs.grad_scale);
  const UpdateOptions all = {o.rule,     lr,       o.beta1,    o.beta2,     o.eps,
                             o.l2,       o.decay,  o.lr_decay, o.dampening, scale,
                             o.nesterov, o.replay, o.plain_eps};
  const auto before = static_cast<int64_t>(*inputs.step);
  numbers->options = all;
  if (steps) {
    numbers->step = step_scalars<A>(all, before + 1);
  } else {
    numbers->step = {before, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0};
  }
  numbers->stopped = inputs.found_inf != nullptr && *inputs.found_inf != 0.0;
}

__global__ void __launch_bounds__(kThreads)
    close_step_kernel(const StepNumbers* numbers, const __grid_constant__ UpdateHistory h,
                      float* step) {
  if (numbers->stopped) return;
  const int64_t now = numbers->step.step;
  const UpdateOptions& o = numbers->options;
  if (threadIdx.x == 0) {
    *step = static_cast<float>(now);
    if (h.data != nullptr) open_step<A>(o, numbers->step, h);
  }
  if (h.data == nullptr || !o.replay) return;
  __syncthreads();
  const StepMove move = step_move<A>(o, numbers->step, h);
  const bool sgd = o.rule == UpdateRule::sgd;
  const int64_t first = now > h.horizon ? now - h.horizon : 0;
  for (int64_t s = first + threadIdx.x; s < now; s += kThreads) {
    double &moves = h.at(kMoves, s), &by_root = h.at(kMovesByRoot, s);
    if (sgd) {
      multiply_left<ScalarLane>(move.matrix, moves, by_root, h.at(kMoves + 2, s),
                                h.at(kMoves + 3, s));
    } else {
      add_moves<ScalarLane>(move, h.at(kLogBeta1, s), h.at(kLogBeta2, s), moves, by_root);
    }
  }
}

}  // namespace

cudaError_t begin_step(const UpdateOptions& options, const StepInputs& inputs, bool steps,
                       StepNumbers* numbers, cudaStream_t stream) {
  return launch(begin_step_kernel, 1, 32, 0, stream, options, inputs, steps, numbers);
}

cudaError_t close_step(const StepNumbers* numbers, const UpdateHistory& history, float* step,
                       cudaStream_t stream) {
  return launch(close_step_kernel, 1, kThreads, 0, stream, numbers, history, step);
}

}  // namespace ssc::cuda
