"""The loss with every option in float64, row by row and class by class, by formulas of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import sampled_softmax_cuda as ssc


@dataclass
class OptionProblem:
    """Arguments of the loss with several targets, excluded classes and options."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor
    samples: ssc.Samples
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def leaves(self) -> list[Tensor]:
        return [t for t in (self.input, self.weight, self.bias) if t is not None]

    def to(self, dtype: torch.dtype) -> OptionProblem:
        cast = [
            None if t is None else t.detach().to(dtype, copy=True).requires_grad_()
            for t in (self.input, self.weight, self.bias)
        ]
        return OptionProblem(*cast, self.target, self.samples, self.options)  # type: ignore[arg-type]

    def loss(self, function: Any = ssc.sampled_softmax_loss, **more: Any) -> Any:
        options = {**self.options, **more}
        return function(
            self.input, self.weight, self.target, self.samples, bias=self.bias, **options
        )


def make_option_problem(
    num_rows: int,
    width: int,
    num_classes: int,
    num_samples: int,
    num_targets: int | None,
    *,
    per_row: bool = False,
    num_excluded: int = 0,
    padding: bool = True,
    counts: bool = True,
    even: bool = True,
    bias: bool = True,
    seed: int = 0,
    **options: Any,
) -> OptionProblem:
    """Repeated samples, hits of every target, padded lists, and rows without a target.

    Args:
        even: copies of a sample have one count, as a sampler gives them.
    """
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(num_rows, width, generator=g)
    w = torch.randn(num_classes, width, generator=g) / width**0.5
    b = torch.randn(num_classes, generator=g) if bias else None
    shape = (num_rows,) if num_targets is None else (num_rows, num_targets)
    target = torch.randint(num_classes, shape, generator=g)
    id_shape = (num_rows, num_samples) if per_row else (num_samples,)
    ids = torch.randint(num_classes, id_shape, generator=g)
    hits = target.reshape(-1)[: num_samples // 2]
    if per_row:
        ids[:, : num_samples // 2] = target.reshape(num_rows, -1)[:, :1]
    else:
        ids[: hits.numel()] = hits
    log_count = torch.randn(num_classes, generator=g)[ids] if counts else None
    if counts and not even:
        log_count = torch.randn(id_shape, generator=g)
    target_log_count = torch.randn(shape, generator=g) if counts else None
    if padding:
        target[::4] = -100
        if num_targets is not None:
            target[1::4, 1:] = -100
    if num_excluded:
        exclude = torch.randint(-1, num_classes, (num_rows, num_excluded), generator=g)
        exclude[:, 0] = ids[:, -1] if per_row else ids[-1]
        options["exclude"] = exclude
    samples = ssc.Samples(ids, log_count, target_log_count)
    return OptionProblem(h, w, b, target, samples, options).to(torch.float64)


def _gamma(s: Tensor, beta: float) -> Tensor:
    return -torch.log(torch.expm1(beta * F.softplus(-s)))


def option_truth(p: OptionProblem, **more: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses [B], differentiable, and the details [B].

    A log count of -inf, of a class that is never drawn, corrects nothing.
    """
    o = {**p.options, **more}
    kind, correction = o.get("loss", "softmax"), o.get("correction", "both")
    if kind in ("negative_sampling", "gbce"):
        correction = "none"
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
        angle = o.get("angular_margin", 0.0)
        if angle:
            theta = torch.acos(x)
            x = torch.cos(theta + angle) if theta + angle < math.pi else x - angle * math.sin(angle)
        z = capped(x - o.get("margin", 0.0) + bias[t])
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
        kept = [s for s, c in enumerate(ids) if c not in banned and counts[s] != math.inf]
        corrected = correction != "none"
        z = torch.stack([capped(product[i, c] + bias[c]) for c in ids])
        z = z - counts * corrected if corrected else z
        z_kept = z[kept]
        rivals = [s for s in kept if ids[s] not in true]
        best = max((float(z[s].detach()) for s in rivals), default=-math.inf)
        lse = torch.cat((z_true, z_kept)).logsumexp(dim=0)
        if kind == "softmax":
            loss = lse - z_true.mean()
            epsilon = o.get("label_smoothing", 0.0)
            if epsilon:
                share = (-counts).softmax(dim=0) if corrected else torch.full_like(z, 1 / len(ids))
                loss = lse - (1 - epsilon) * z_true.mean() - epsilon * (share * z).sum()
            if correction == "reweighted":
                n = z_kept.logsumexp(dim=0)
                p_true = (z_true[0] - lse).exp().detach()
                loss = (1 - p_true) * (n - z_true[0])
        elif kind == "gbce":
            alpha = min(len(ids) / (num_classes - 1), 1)
            t = o.get("calibration", 0.75)
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
