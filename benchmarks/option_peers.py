"""The losses and options beyond the plain sampled softmax, composed of PyTorch's ops.

As a user writes them: rows by F.embedding with a row-sparse gradient, logits [B, S] stored, one op
after the other; sums are taken in float32.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from peers import Problem, Step, draw

import sampled_softmax_cuda as ssc


def _logits(x: torch.Tensor, offsets: torch.Tensor, temperature: float, softcap: float | None):
    z = (x + offsets).float() / temperature
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def _sigmoid_loss(
    z_true: torch.Tensor, z: torch.Tensor, num_samples: int, num_classes: int, kind: str
) -> torch.Tensor:
    """NCE and negative sampling in sums over targets [B, T] and samples [B, S]; gBCE in means."""
    others = F.softplus(z).sum(1)
    if kind == "gbce":
        beta = 1.0 - 0.75 * (1.0 - num_samples / (num_classes - 1))
        return (beta * F.softplus(-z_true[:, 0]) + others) / (1 + num_samples)
    label = torch.full_like(z_true, 1.0 / z_true.shape[1])
    own = F.binary_cross_entropy_with_logits(z_true, label, reduction="none").sum(1)
    return own + others


def composed_option_loss(
    problem: Problem,
    target: torch.Tensor,
    exclude: torch.Tensor | None,
    *,
    objective: str | ssc.Objective = "softmax",
    temperature: float = 1.0,
    softcap: float | None = None,
    cosine: bool = False,
) -> torch.Tensor:
    """The mean loss with target [B, T] and, where given, exclude [B, E]."""
    softmax = objective if isinstance(objective, ssc.Softmax) else ssc.Softmax()
    ids, log_count, target_log_count = draw(problem, target)
    samples, (batch, num_targets) = ids.shape[0], target.shape
    touched = torch.cat([ids, target.flatten()])
    input, rows = problem.input, F.embedding(touched, problem.weight, sparse=True)
    offsets = torch.gather(problem.bias, 0, touched, sparse_grad=True)
    if cosine:
        input, rows = F.normalize(input, dim=1), F.normalize(rows, dim=1)
    own = rows[samples:].view(batch, num_targets, -1)
    true = (input[:, None] * own).sum(2)
    if softmax.angular_margin:
        true = torch.cos(torch.acos(true.clamp(-1 + 1e-6, 1 - 1e-6)) + softmax.angular_margin)
    own_offsets = offsets[samples:].view(batch, num_targets)
    z_true = _logits(true - softmax.margin, own_offsets, temperature, softcap)
    z = _logits(input @ rows[:samples].t(), offsets[:samples], temperature, softcap)
    if objective not in ("negative_sampling", "gbce"):
        z_true, z = z_true - target_log_count, z - log_count
    mean = z @ (-log_count).softmax(0) if softmax.label_smoothing else None
    for left_out in (target, exclude):
        for column in () if left_out is None else left_out.unbind(1):
            z = z.masked_fill(ids[None, :] == column[:, None], -math.inf)
    if isinstance(objective, str) and objective != "softmax":
        return _sigmoid_loss(z_true, z, samples, problem.num_classes, objective).mean()
    value = torch.cat([z_true, z], 1).logsumexp(1) - z_true.mean(1)
    if mean is not None:
        value = value + softmax.label_smoothing * (z_true.mean(1) - mean)
    return value.mean()


def composed_option_step(
    problem: Problem, target: torch.Tensor, exclude: torch.Tensor | None, **options: object
) -> Step:
    """One training step: draw, forward, backward with row-sparse gradients."""
    columns = target if target.dim() == 2 else target[:, None]

    def step() -> None:
        composed_option_loss(problem, columns, exclude, **options).backward()
        problem.drop_gradients()

    return step
