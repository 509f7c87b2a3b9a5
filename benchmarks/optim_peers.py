"""Training steps with their optimizers: ours, torch's, PyTorch's composition, TensorFlow's.

Every function returns a callable that runs one whole training step: draw, forward, backward, and
the optimizer's step on weight [C, D] and bias [C]. All of an optimizer's states have been written
before it is returned, and some steps taken, so that no timed step is the first to touch a page.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peers import Problem, Step, composed_loss, draw

import sampled_softmax_cuda as ssc

Make = Callable[..., torch.optim.Optimizer]  # of parameters

# So small that hundreds of steps on one batch leave the weights as they are.
LR = 1e-6
WARM_STEPS = 30  # a virtual machine finds its memory for some steps after the first

OURS: dict[str, Make] = {
    "SGD": lambda p, **options: ssc.optim.SGD(p, LR, **options),
    "Adagrad": lambda p, **options: ssc.optim.Adagrad(p, LR, **options),
    "RowWiseAdagrad": lambda p, **options: ssc.optim.RowWiseAdagrad(p, LR, **options),
    "AdamW decay": lambda p, **options: ssc.optim.AdamW(p, LR, **options),
    "AdamW freeze": lambda p, **options: ssc.optim.AdamW(p, LR, skipped="freeze", **options),
    "AdamW replay": lambda p, **options: ssc.optim.AdamW(p, LR, skipped="replay", **options),
}
TORCH: dict[str, Make] = {
    "torch SGD": lambda p: torch.optim.SGD(p, LR),
    "torch Adagrad": lambda p: torch.optim.Adagrad(p, LR),
    "torch SparseAdam": lambda p: torch.optim.SparseAdam(p, LR),
}


def touch_states(optimizer: torch.optim.Optimizer) -> None:
    """Write every page of the states that are there, and change no value."""
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                value.mul_(1)


def our_loss(problem: Problem) -> torch.Tensor:
    """The loss of one draw without replacement, with row-sparse gradients."""
    samples = ssc.LogUniformSampler(problem.num_classes).sample(
        problem.target, problem.num_samples, replacement=False
    )
    return ssc.sampled_softmax_loss(
        problem.input,
        problem.weight,
        problem.target,
        samples,
        bias=problem.bias,
        sparse_grad=True,
    )


def eager_loss(problem: Problem) -> torch.Tensor:
    """The composition of PyTorch's ops, with row-sparse gradients."""
    ids, log_count, target_log_count = draw(problem, problem.target)
    return composed_loss(
        problem.input,
        problem.weight,
        problem.bias,
        problem.target,
        ids,
        log_count,
        target_log_count,
        True,
    )


def training_step(
    problem: Problem, loss: Callable[[Problem], torch.Tensor], make: Make | None
) -> Step:
    """Draw, forward, backward and, unless `make` is None, the optimizer's step."""
    optimizer = None if make is None else make([problem.weight, problem.bias])

    def step() -> None:
        loss(problem).backward()
        if optimizer is not None:
            optimizer.step()
        problem.drop_gradients()

    if optimizer is not None:
        step()
        touch_states(optimizer)
    for _ in range(WARM_STEPS):
        step()
    return step


def tensorflow_training_step(problem: Problem, threads: int, name: str) -> Step:
    """tf.nn.sampled_softmax_loss in a tf.function with an optimizer of tf.compat.v1.train.

    name: "Adagrad", which touches the rows of the gradient, or "Adam", which passes over all rows,
    because all moments fade and all weights move in each step.
    """
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    weight = tf.Variable(problem.weight.detach().numpy())
    bias = tf.Variable(problem.bias.detach().numpy())
    h = tf.constant(problem.input.detach().numpy())
    labels = tf.constant(problem.target.numpy().reshape(-1, 1))
    samples, classes = problem.num_samples, problem.num_classes
    optimizer = getattr(tf.compat.v1.train, f"{name}Optimizer")(LR)

    @tf.function
    def step():
        sampled = tf.random.log_uniform_candidate_sampler(labels, 1, samples, True, classes)
        with tf.GradientTape() as tape:
            tape.watch(h)
            loss = tf.reduce_mean(
                tf.nn.sampled_softmax_loss(
                    weight, bias, labels, h, samples, classes, 1, sampled_values=sampled
                )
            )
        h_grad, weight_grad, bias_grad = tape.gradient(loss, [h, weight, bias])
        optimizer.apply_gradients([(weight_grad, weight), (bias_grad, bias)])
        return h_grad

    for _ in range(WARM_STEPS if name == "Adagrad" else 3):
        step()
    return lambda: step().numpy()
