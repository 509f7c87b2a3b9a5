"""The peers of a step: the same loss by other means, on the same tensors.

Every function returns a callable that runs one whole training step (draw, forward, backward),
gradients dropped afterwards, or raises where the peer is not there. The draws of the peers are
those that their users write: with replacement, one formula over `torch.rand`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import sampled_softmax_cuda as ssc

Step = Callable[[], object]


@dataclass
class Problem:
    """The tensors of one configuration: input [B, D], target [B], weight [C, D], bias [C]."""

    input: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    num_samples: int
    sampler: str  # "uniform" or "log_uniform"

    @property
    def num_classes(self) -> int:
        return self.weight.shape[0]

    def drop_gradients(self) -> None:
        for tensor in (self.input, self.weight, self.bias):
            tensor.grad = None


def zipf_targets(rows: int, classes: int, seed: int = 1) -> torch.Tensor:
    """Targets as text has them: log-uniform over the classes, int64 [rows]."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(rows, generator=generator, dtype=torch.float64)
    ids = torch.expm1(u * math.log1p(classes)).long()
    return ids.clamp_(max=classes - 1)


def make_problem(
    batch: int,
    width: int,
    samples: int,
    classes: int,
    dtype: torch.dtype,
    sampler: str,
    device: str = "cpu",
) -> Problem:
    torch.manual_seed(0)
    weight = torch.empty(classes, width, dtype=dtype, device=device)
    if device == "cpu":
        ssc.prefer_huge_pages(weight)
    return Problem(
        input=torch.randn(batch, width).to(device, dtype).requires_grad_(),
        target=zipf_targets(batch, classes).to(device),
        weight=weight.uniform_(-0.05, 0.05).requires_grad_(),
        bias=torch.zeros(classes, dtype=dtype, device=device, requires_grad=True),
        num_samples=samples,
        sampler=sampler,
    )


# --- PyTorch: the loss composed of its ops -------------------------------------------------------


def draw(problem: Problem, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids [S] with replacement, log expected counts [S] and those of target [*]."""
    classes, samples, device = problem.num_classes, problem.num_samples, target.device
    if problem.sampler == "uniform":
        ids = torch.randint(classes, (samples,), device=device)
        log_count = torch.full((), math.log(samples / classes), device=device)
        return ids, log_count.expand(samples), log_count.expand(target.shape)
    scale = math.log1p(classes)
    u = torch.rand(samples, dtype=torch.float64, device=device)
    ids = torch.expm1(u * scale).long().clamp_(max=classes - 1)

    def log_count_of(classes_: torch.Tensor) -> torch.Tensor:
        q = torch.log1p(1.0 / (classes_ + 1).double()) / scale
        return (q * samples).log().float()

    return ids, log_count_of(ids), log_count_of(target)


def composed_loss(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    target: torch.Tensor,
    ids: torch.Tensor,
    log_count: torch.Tensor,
    target_log_count: torch.Tensor,
    sparse: bool,
) -> torch.Tensor:
    """Sampled softmax as a user of PyTorch writes it, in float32 after the matmul."""
    touched = torch.cat([ids, target])
    rows = F.embedding(touched, weight, sparse=sparse)
    offsets = torch.gather(bias, 0, touched, sparse_grad=sparse)
    samples = ids.shape[0]
    z = (input @ rows[:samples].t() + offsets[:samples]).float() - log_count
    z = z.masked_fill(ids[None, :] == target[:, None], -math.inf)
    true = (input * rows[samples:]).sum(1).add(offsets[samples:]).float() - target_log_count
    return (torch.logaddexp(true, z.logsumexp(1)) - true).mean()


def eager_step(problem: Problem, sparse: bool, compiled: bool = False) -> Step:
    """The composition with dense or sparse weight gradients, eager or through torch.compile."""
    loss = torch.compile(composed_loss) if compiled else composed_loss

    def step() -> None:
        ids, log_count, target_log_count = draw(problem, problem.target)
        loss(
            problem.input,
            problem.weight,
            problem.bias,
            problem.target,
            ids,
            log_count,
            target_log_count,
            sparse,
        ).backward()
        problem.drop_gradients()

    return step


# --- The bare matmuls: a bound for anyone who builds on a library --------------------------------


def _gemm_operands(problem: Problem) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """H [B, D], Ws [S, D], P [B, S] without gradients."""
    h = problem.input.detach()
    rows = problem.weight.detach()[: problem.num_samples].clone()
    if rows.shape[0] < problem.num_samples:
        rows = rows.repeat(-(-problem.num_samples // rows.shape[0]), 1)[: problem.num_samples]
    return h, rows, torch.rand(h.shape[0], problem.num_samples, device=h.device).to(h.dtype)


def mm_step(problem: Problem) -> Step:
    """torch.mm, three times: z = H·Wsᵀ, dH = P·Ws, dWs = Pᵀ·H. No draw, no gather, no softmax."""
    h, rows, p = _gemm_operands(problem)
    return lambda: (h @ rows.t(), p @ rows, p.t() @ h)


def onednn_step(problem: Problem) -> Step:
    """The same three products by oneDNN, every operand handed over in the layout that it likes best
    (both row-major along the summed index), prepared outside the timed step."""
    h, rows, p = _gemm_operands(problem)
    pairs = [(h, rows), (p, rows.t().contiguous()), (p.t().contiguous(), h.t().contiguous())]
    linear = torch.ops.mkldnn._linear_pointwise
    return lambda: [linear(x, w, None, "none", [], None) for x, w in pairs]


# --- The exact loss over all classes -------------------------------------------------------------


def full_step(problem: Problem) -> Step:
    """F.cross_entropy over all C classes, dense gradients."""

    def step() -> None:
        logits = F.linear(problem.input, problem.weight, problem.bias)
        F.cross_entropy(logits.float(), problem.target).backward()
        problem.drop_gradients()

    return step


def linear_cross_entropy_step(problem: Problem) -> Step:
    """F.linear_cross_entropy with its chunked option (torch 2.13 and later), which is not its
    default: that is `full_softmax_step`'s two functions."""
    if not hasattr(F, "linear_cross_entropy"):
        raise RuntimeError(f"torch {torch.__version__} has no F.linear_cross_entropy")
    options = torch.nn.LinearCrossEntropyOptions()

    def step() -> None:
        F.linear_cross_entropy(
            problem.input,
            problem.weight,
            problem.target,
            linear_bias=problem.bias,
            options=options,
        ).backward()
        problem.drop_gradients()

    return step


# --- The exact loss by others' fused kernels -----------------------------------------------------


def cut_cross_entropy_step(problem: Problem) -> Step:
    """Apple's cut-cross-entropy, if it is installed."""
    from cut_cross_entropy import linear_cross_entropy

    def step() -> None:
        linear_cross_entropy(
            problem.input, problem.weight, problem.target, bias=problem.bias
        ).backward()
        problem.drop_gradients()

    return step


def liger_step(problem: Problem) -> Step:
    """Liger's fused linear cross entropy, if it is installed."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss()

    def step() -> None:
        loss(problem.weight, problem.input, problem.target, problem.bias).backward()
        problem.drop_gradients()

    return step


# --- TensorFlow ----------------------------------------------------------------------------------


def tensorflow_step(
    problem: Problem, threads: int, target: torch.Tensor, loss: str = "sampled_softmax_loss"
) -> Step:
    """`loss` of tf.nn in a tf.function, its own sampler, IndexedSlices gradients.

    target: [B] or [B, T].
    """
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    weight = tf.Variable(problem.weight.detach().numpy())
    bias = tf.Variable(problem.bias.detach().numpy())
    h = tf.constant(problem.input.detach().numpy())
    labels = tf.constant(target.numpy().reshape(target.shape[0], -1))
    num_true = labels.shape[1]
    function = getattr(tf.nn, loss)
    samples, classes = problem.num_samples, problem.num_classes

    @tf.function
    def step():
        if problem.sampler == "uniform":
            sampled = tf.random.uniform_candidate_sampler(labels, num_true, samples, True, classes)
        else:
            sampled = tf.random.log_uniform_candidate_sampler(
                labels, num_true, samples, True, classes
            )
        with tf.GradientTape() as tape:
            tape.watch(h)
            loss = tf.reduce_mean(
                function(
                    weight, bias, labels, h, samples, classes, num_true, sampled_values=sampled
                )
            )
        return tape.gradient(loss, [h, weight, bias])

    def run() -> None:
        h_grad, weight_grad, _ = step()
        h_grad.numpy(), weight_grad.values.numpy()

    return run
