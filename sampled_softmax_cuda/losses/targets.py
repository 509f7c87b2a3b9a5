"""The share of the true classes in a loss, in plain PyTorch.

Their logits are [B, T], so margins, caps and objectives are a line each; the formulas of the
objectives stand in objectives.py. T is the number of a row's true classes that are there: a list
may be padded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .._rules import may_look
from .._transforms import transforming
from ..objectives import GBCE, Objective, Softmax
from ..options import Options
from ..samples import KeyedSamples, Samples
from .gather import UnitRows, gather_rows, touched_rows
from .problem import Problem
from .rows import cap, compute_dtype, correction_of, reweighted, softplus


class Operands(NamedTuple):
    """input [B, D], weight [C, D] and bias [C] or None, as the parts of a loss multiply them."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Step:
    """The rows as the parts of a loss see them: T true classes each, K classes that are hits."""

    options: Options
    samples: Samples | KeyedSamples
    num_classes: int
    """C, also where the weight has fewer rows."""
    num_samples: int
    """S, also where others have some of them."""
    target: Tensor
    """[B, T] rows of the weight; 0 where there is no true class."""
    there: Tensor | None
    """[B, T] which of them are there; None: all."""
    counted: Tensor | None
    """[B] whether any of the row's is; None: always."""
    bad: Tensor | None
    """[B] whether one of them is out of range; None: never."""
    hits: Tensor
    """[B, K] classes that are no negatives of the row, -1 for none."""
    sparse_grad: bool

    @property
    def rows_that_count(self) -> Tensor:
        """[B] `counted`, also where all do."""
        if self.counted is not None:
            return self.counted
        return torch.ones(self.target.shape[0], dtype=torch.bool, device=self.target.device)


def only(mask: Tensor | None, values: Tensor, other: float = 0.0) -> Tensor:
    """The values where the mask holds, or everywhere if there is none."""
    return values if mask is None else torch.where(mask, values, other)


def column(mask: Tensor | None) -> Tensor | None:
    """[B, 1] of [B]."""
    return None if mask is None else mask[:, None]


def _all_are_classes(target: Tensor, num_classes: int, ignore_index: int) -> bool:
    """Whether every target counts, as far as that can be seen without waiting for it."""
    if torch.compiler.is_compiling() or transforming() or not may_look(target):
        return False
    if target.numel() == 0:
        return False
    low, high = (int(end) for end in target.aminmax())
    return low >= 0 and high < num_classes and not low <= ignore_index <= high


def prepare(p: Problem, unit_rows: UnitRows) -> tuple[Operands, Step]:
    """The operands of the parts of a loss, and the rows as they see them.

    With cosines, input and weight are unit rows, and the weight has only those that are touched; so
    it has in a traced graph with row-sparse gradients.

    Args:
        unit_rows: rows of a table, divided by their norms.
    """
    o, weight, bias, exclude, samples = p.options, p.weight, p.bias, p.exclude, p.samples
    input = p.input.reshape(-1, p.input.shape[-1])
    num_rows, num_classes = input.shape[0], weight.shape[0]
    many = p.target.dim() == p.input.dim()
    target = p.target.reshape(num_rows, p.target.shape[-1] if many else 1)
    if exclude is not None:
        exclude = exclude.reshape(num_rows, exclude.shape[-1])
    there = counted = bad = None
    safe = own = target
    if not _all_are_classes(target, num_classes, o.ignore_index):
        there = target != o.ignore_index
        in_range = (target >= 0) & (target < num_classes)
        counted = there.any(dim=1)
        bad = (there & ~in_range).any(dim=1)
        safe = torch.where(there & in_range, target, 0)
        own = torch.where(there, target, -1)
    sparse_grad = p.sparse_grad
    # A traced graph can use one row-sparse gradient, but can't add up several.
    if o.cosine or (sparse_grad and torch.compiler.is_compiling()):
        given = samples.materialize()
        c = touched_rows(
            weight,
            bias,
            given.ids,
            safe,
            exclude,
            compute_dtype(input) if o.cosine else None,
            sparse_grad,
            unit_rows if o.cosine else gather_rows,
        )
        weight, bias, safe, exclude = c.weight, c.bias, c.target, c.exclude
        samples = replace(given, ids=c.ids)
        own = safe if there is None else torch.where(there & in_range, safe, -1)
        sparse_grad = False  # the rows' own way back is sparse
    if o.cosine:
        input = unit_rows(only(column(counted), input), None, compute_dtype(input), False)
    hits = own if exclude is None else torch.cat((own, exclude.clamp_min(-1)), dim=1)
    sizes = (p.num_classes or num_classes, samples.num_samples)
    step = Step(o, samples, *sizes, safe, there, counted, bad, hits, sparse_grad)
    return Operands(input, weight, bias), step


def _add_angle(cosine: Tensor, angle: float) -> Tensor:
    """cos(theta + angle); beyond pi, where that would rise again, its tangent's level goes on.

    Deng et al., "ArcFace", CVPR 2019, and the authors' rule for theta + angle > pi.
    """
    # The sine's slope is infinite at |cosine| = 1: keep the gradient finite.
    sine = (1.0 - cosine * cosine).clamp_min(torch.finfo(cosine.dtype).eps).sqrt()
    turned = cosine * math.cos(angle) - sine * math.sin(angle)
    return torch.where(cosine > math.cos(math.pi - angle), turned, cosine - angle * math.sin(angle))


@dataclass(frozen=True)
class TargetTerms:
    """The true classes' terms of a loss, which is own + share * the negatives' loss, all [B]."""

    z: Tensor
    """[B, T] corrected logits."""
    largest: Tensor
    """The largest of them."""
    logit: Tensor
    """Their logsumexp, which the softmax's negatives are compared with."""
    own: Tensor | None
    """None for 0."""
    share: float


def with_margins(product: Tensor, objective: Objective) -> Tensor:
    """The products of rows with their targets, less the objective's margins."""
    if isinstance(objective, Softmax):
        if objective.angular_margin != 0.0:
            product = _add_angle(product, objective.angular_margin)
        if objective.margin != 0.0:
            product = product - objective.margin
    return product


def target_terms(product: Tensor, bias: Tensor | None, s: Step) -> TargetTerms:
    """From the products input · weight_t, NaN where they are infinite, and the biases of the
    targets, both [B, T]."""
    o, objective = s.options, s.options.objective
    x = with_margins(product, objective)
    if bias is not None:
        x = x + bias
    z = cap(x / o.temperature, o.softcap or 0.0)
    if o.corrects_targets and s.samples.target_log_expected_count is not None:
        correction = correction_of(s.samples.target_log_expected_count, z.dtype).reshape(z.shape)
        z = z - only(s.there, correction)
    one = z.shape[1] == 1
    there = only(s.there, z.detach(), -torch.inf)
    largest = there.squeeze(1) if one else there.amax(dim=1)
    logit = torch.zeros_like(largest)
    own, share = None, 1.0
    if not objective._sigmoid:
        logit = z.squeeze(1) if one else only(s.there, z, -torch.inf).logsumexp(dim=1)
        logit = only(s.counted, logit)
        if not one:
            own = logit - mean_of_targets(z, s)
    elif isinstance(objective, GBCE):
        beta = objective.beta(s.num_samples, s.num_classes)
        share = 1.0 / (1 + s.num_samples)
        own = beta * share * softplus(-z.squeeze(1))
    elif one:
        own = only(s.counted, (softplus(z) - z).squeeze(1))  # NaN at infinity
    else:
        own = only(s.there, softplus(z)).sum(dim=1) - mean_of_targets(z, s)
    return TargetTerms(z, largest, logit, own, share)


def mean_of_targets(z: Tensor, s: Step) -> Tensor:
    """[B] from z [B, T], over the true classes that are there."""
    if z.shape[1] == 1:
        return only(s.counted, z.squeeze(1))
    if s.there is None:
        return z.mean(dim=1)
    return only(s.there, z).sum(dim=1) / s.there.sum(dim=1).clamp_min(1)


def label_smoothing(o: Options) -> float:
    """The share of the label that is spread over all classes."""
    return o.objective.label_smoothing if isinstance(o.objective, Softmax) else 0.0


def losses_of_rows(
    terms: TargetTerms, negatives: Tensor, s: Step, smoothed: Tensor | None = None
) -> Tensor:
    """The losses [B] from that of the negatives.

    smoothed: the mean logit of all classes, with label smoothing.
    """
    o = s.options
    loss = negatives if terms.share == 1.0 else negatives * terms.share
    if terms.own is not None:
        loss = loss + terms.own
    if o.reweighted:
        loss = reweighted(loss)
    if smoothed is not None:
        loss = loss + label_smoothing(o) * (mean_of_targets(terms.z, s) - smoothed)
    if o.z_loss != 0.0:
        loss = loss + o.z_loss * (terms.logit + negatives).square()
    if s.bad is not None:
        loss = loss.masked_fill(s.bad, torch.nan)
    return only(s.counted, loss)


def details_of_rows(
    terms: TargetTerms, negatives: Tensor, peak: Tensor, s: Step
) -> tuple[Tensor, Tensor, Tensor]:
    """lse, target logit and error [B] from the negatives' loss and the largest of them."""
    sigmoid = s.options.objective._sigmoid
    lse = torch.maximum(terms.largest, peak) if sigmoid else terms.logit + negatives
    error = (terms.largest < peak).to(lse.dtype)
    lse, largest, error = (only(s.counted, row) for row in (lse.detach(), terms.largest, error))
    return lse, largest, error
