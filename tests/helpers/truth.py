"""The loss in float64 by formulas of its own, and how close to it is close enough."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import sampled_softmax_cuda as ssc
from sampled_softmax_cuda.objectives import as_objective

from .problem import Problem

EPSILON = {
    dtype: torch.finfo(dtype).eps for dtype in (torch.float32, torch.bfloat16, torch.float16)
}
EPSILON[torch.float64] = torch.finfo(torch.float64).eps


def truth(problem: Problem, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss in float64, from logits over all classes, by formulas of its own.

    Returns the loss, which is differentiable in the problem's leaves, and the details by name, with
    the "margin" by which the target beats the best sample.
    """
    temperature = options.get("temperature", 1.0)
    correction = options.get("correction", "both")
    p = problem
    keep = p.target != options.get("ignore_index", -100)
    safe = torch.where(keep, p.target, 0)
    bias = None if p.bias is None else p.bias.double()
    z_all = F.linear(p.input.double(), p.weight.double(), bias) / temperature
    z = z_all[:, p.samples.ids]
    z_target = z_all.gather(1, safe[:, None])[:, 0]
    if p.samples.log_expected_count is not None and correction != "none":
        z = z - p.samples.log_expected_count.double()
    if p.samples.target_log_expected_count is not None and correction == "both":
        z_target = z_target - p.samples.target_log_expected_count.double()
    if options.get("remove_accidental_hits", True):
        z = torch.where(p.samples.ids == safe[:, None], -torch.inf, z)
    lse = torch.cat((z_target[:, None], z), dim=1).logsumexp(dim=1)
    rows = torch.where(keep, lse - z_target, 0)
    details = {
        "lse": torch.where(keep, lse, 0),
        "target_logit": torch.where(keep, z_target, 0),
        "error": (keep & (z_target < z.amax(dim=1))).double(),
        "margin": z_target - z.amax(dim=1),
    }
    weights = options.get("sample_weight")
    weights = keep.double() if weights is None else torch.where(keep, weights.double(), 0)
    reduction = options.get("reduction", "mean")
    if reduction == "none":
        return rows * weights, details
    total = (rows * weights).sum()
    if reduction == "mean" and bool(weights.detach().any()):
        total = total / weights.sum()
    return total, details


def assert_close_to_truth(
    ours: Tensor,
    same_dtype_reference: Tensor,
    truth: Tensor,
    what: str,
    *,
    slack: float = 4.0,
    scale: float = 0.0,
) -> None:
    """err(ours) <= 2 * err(reference in the same dtype) + slack * eps * max(scale, |truth|).

    The second term is for truths that the reference meets by chance, and for rounding the result.
    `scale` is the size of the terms where the truth is a small difference of larger ones.
    """
    dtype = ours.dtype
    ours, reference = ours.detach().to_dense().double(), same_dtype_reference.detach().to_dense()
    exact = truth.detach().to_dense().double()
    assert ours.shape == exact.shape, f"{what}: shape {list(ours.shape)}, not {list(exact.shape)}"
    if exact.numel() == 0:
        return
    assert bool(torch.isfinite(ours).all()), f"{what}: not finite"
    error = (ours - exact).abs()
    reference_error = float((reference.double() - exact).abs().max())
    largest = max(scale, float(exact.abs().max()))
    limit = 2 * reference_error + slack * EPSILON[dtype] * largest
    worst = int(error.argmax())
    assert float(error.max()) <= limit, (
        f"{what} ({dtype}): error {float(error.max()):.3e} > {limit:.3e}; the reference's is"
        f" {reference_error:.3e}; worst at flat index {worst}:"
        f" {float(ours.flatten()[worst])!r}, truth {float(exact.flatten()[worst])!r}"
    )


def check_grads(
    problem: Problem, loss: Callable[[Any], torch.Tensor] | None = None, **options: Any
) -> None:
    """Gradients of `loss(result)` (its sum by default) against those of the float64 truth."""
    reduce = loss or torch.sum
    ours = torch.autograd.grad(reduce(problem.loss(**options)), problem.leaves)
    same = torch.autograd.grad(reduce(problem.reference(**options)), problem.leaves)
    double = problem.to(torch.float64)
    options.pop("sparse_grad", None)
    expected = torch.autograd.grad(reduce(truth(double, **options)[0]), double.leaves)
    scale = 1 / options.get("temperature", 1.0) / problem.target.numel()
    for name, leaf, a, b, c in zip(
        ("input", "weight", "bias"), problem.leaves, ours, same, expected, strict=False
    ):
        assert a.dtype == leaf.dtype
        assert_close_to_truth(a, b, c, f"gradient of {name}", slack=16, scale=scale)


def _gamma(s: Tensor, beta: float) -> Tensor:
    return -torch.log(torch.expm1(beta * F.softplus(-s)))


def option_truth(p: Problem, **more: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses [B], differentiable, and the details [B].

    A log count of -inf, of a class that is never drawn, corrects nothing.
    """
    o = {**p.options, **more}
    objective = as_objective("truth", o.get("objective", "softmax"))
    softmax = objective if isinstance(objective, ssc.Softmax) else ssc.Softmax()
    correction = o.get("correction", "both")
    if isinstance(objective, (ssc.NegativeSampling, ssc.GBCE)):
        correction = "none"
    if softmax.reweighted:
        correction = "negatives"
    ignore = o.get("ignore_index", -100)
    temperature, softcap = o.get("temperature", 1.0), o.get("softcap")
    num_classes = p.weight.shape[0]
    h, w = p.input.double(), p.weight.double()
    if o.get("cosine", False):
        h, w = F.normalize(h, dim=-1), F.normalize(w, dim=-1)
    product = h @ w.T
    bias = torch.zeros(num_classes, dtype=torch.float64) if p.bias is None else p.bias.double()

    def capped(x: Tensor) -> Tensor:
        x = x / temperature
        return x if softcap is None else softcap * torch.tanh(x / softcap)

    def true_logit(i: int, t: int, log_count: float) -> Tensor:
        x = product[i, t]
        angle = softmax.angular_margin
        if angle:
            theta = torch.acos(x)
            x = torch.cos(theta + angle) if theta + angle < math.pi else x - angle * math.sin(angle)
        z = capped(x - softmax.margin + bias[t])
        return z - log_count if correction == "both" and log_count > -math.inf else z

    losses, details = [], {"lse": [], "target_logit": [], "error": []}
    targets = p.target.reshape(p.input.shape[0], -1)
    for i in range(p.input.shape[0]):
        places = [j for j in range(targets.shape[1]) if targets[i, j] != ignore]
        if not places:
            losses.append(product[i].sum() * 0)
            for rows in details.values():
                rows.append(torch.zeros((), dtype=torch.float64))
            continue
        true = [int(targets[i, j]) for j in places]
        counts = p.samples.target_log_expected_count
        z_true = torch.stack(
            [
                true_logit(
                    i, t, 0.0 if counts is None else float(counts.reshape(targets.shape)[i, j])
                )
                for t, j in zip(true, places, strict=True)
            ]
        )
        ids = (p.samples.ids if p.samples.ids.dim() == 1 else p.samples.ids[i]).tolist()
        counts = p.samples.log_expected_count
        if counts is None:
            counts = torch.zeros(len(ids))
        counts = (counts if counts.dim() == 1 else counts[i]).double()
        counts = torch.where(counts == -math.inf, 0.0, counts)
        banned = set(o["exclude"][i].tolist()) if "exclude" in o else set()
        if o.get("remove_accidental_hits", True):
            banned |= set(true)
        drawn = (counts != math.inf).tolist()
        kept = [s for s, c in enumerate(ids) if c not in banned and drawn[s]]
        corrected = correction != "none"
        z = capped(product[i, ids] + bias[ids])
        z = z - counts * corrected if corrected else z
        z_kept = z[kept]
        rivals = [s for s in kept if ids[s] not in true]
        best = max(z.detach()[rivals].tolist(), default=-math.inf)
        lse = torch.cat((z_true, z_kept)).logsumexp(dim=0)
        if isinstance(objective, ssc.Softmax):
            loss = lse - z_true.mean()
            epsilon = softmax.label_smoothing
            if epsilon:
                share = (-counts).softmax(dim=0) if corrected else torch.full_like(z, 1 / len(ids))
                loss = lse - (1 - epsilon) * z_true.mean() - epsilon * (share * z).sum()
            loss = loss + o.get("z_loss", 0.0) * lse.square()
            if softmax.reweighted:
                n = z_kept.logsumexp(dim=0)
                p_true = (z_true[0] - lse).exp().detach()
                loss = (1 - p_true) * (n - z_true[0])
        elif isinstance(objective, ssc.GBCE):
            alpha = min(len(ids) / (num_classes - 1), 1)
            t = objective.calibration
            beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)  # as the paper writes it
            positive = F.binary_cross_entropy_with_logits(
                _gamma(z_true[0], beta), torch.ones((), dtype=torch.float64)
            )
            loss = (positive - F.logsigmoid(-z_kept).sum()) / (1 + len(ids))
        else:
            label = torch.full_like(z_true, 1 / len(true))
            loss = F.binary_cross_entropy_with_logits(z_true, label, reduction="sum")
            loss = loss - F.logsigmoid(-z_kept).sum()
        losses.append(loss)
        details["lse"].append(lse.detach())
        details["target_logit"].append(z_true.max().detach())
        details["error"].append((z_true.max() < best).double())
    return torch.stack(losses), {name: torch.stack(rows) for name, rows in details.items()}
