"""Losses beyond the plain sampled softmax, composed of two parts.

The logits of the T true classes of each row, [B, T], are taken in plain PyTorch, where margins and
caps are a line each. Everything that is large, the sum over the negatives, is one function
(negatives.py), which the compiled backends replace. With target logits z_t, r = logsumexp_t z_t and
N = the negatives' softmax loss against r (or their sigmoid loss):

    softmax             N + r - mean_t z_t
    nce                 sum_t (softplus(z_t) - z_t / T) + N        Gutmann and Hyvärinen 2010
    negative_sampling   the same without the correction            Mikolov et al. 2013
    gbce                (beta softplus(-z_t) + N) / (1 + S)        Petrov and Macdonald 2023

T is the number of the row's true classes that are there: a list may be padded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .._load import on_cpu
from .._sparse import fork
from .loss import (
    compute_dtype,
    correction_of,
    count_of_samples,
    followed_ids,
    gather_rows,
    infinite_is_nan,
    matmul,
    reweighted,
)
from .negatives import cap, softplus

if TYPE_CHECKING:
    from ..samplers.keyed import KeyedSamples
    from ..samplers.samples import Samples

LOSSES = ("softmax", "nce", "negative_sampling", "gbce")

NegativesLoss = Callable[..., tuple[Tensor, Tensor]]
"""(input, weight, bias, target_logit, hits, counted, samples, inv_temperature, softcap,
remove_hits, sigmoid, sparse_grad, corrected) -> loss [B], peak [B]"""


RowsOf = Callable[[Tensor, Tensor, torch.dtype, bool], Tensor]
"""(table [C, D], classes [N], dtype, sparse gradient) -> [N, D]"""


@dataclass(frozen=True)
class LossOptions:
    """The options of `sampled_softmax_loss` that change what is computed for a row."""

    loss: str = "softmax"
    temperature: float = 1.0
    correction: str = "both"
    remove_accidental_hits: bool = True
    ignore_index: int = -100
    softcap: float | None = None
    cosine: bool = False
    margin: float = 0.0
    angular_margin: float = 0.0
    label_smoothing: float = 0.0
    calibration: float = 0.75

    @property
    def plain(self) -> bool:
        """Whether the fused operator of the plain softmax computes this, for one true class."""
        return (
            self.loss == "softmax"
            and self.softcap is None
            and not self.cosine
            and self.margin == 0.0
            and self.angular_margin == 0.0
            and self.label_smoothing == 0.0
        )

    @property
    def corrects_samples(self) -> bool:
        """Whether log n is subtracted from the samples' logits."""
        return self.correction != "none" and self.loss in ("softmax", "nce")

    @property
    def corrects_targets(self) -> bool:
        """Whether log n is subtracted from the targets' logits."""
        return self.correction == "both" and self.loss in ("softmax", "nce")


def gbce_beta(num_samples: int, num_classes: int, calibration: float) -> float:
    """The exponent of gBCE, 1 - t (1 - alpha): sigmoid(s)^beta is the calibrated probability.

    alpha = num_samples / (num_classes - 1) is the sampling rate and t the calibration, 0 for the
    plain binary cross entropy and 1 for probabilities as without sampling. In logits, sigmoid(s)^
    beta = sigmoid(gamma(s)) with gamma(s) = -log expm1(beta softplus(-s)). Petrov and Macdonald,
    "gSASRec", RecSys 2023.

    Example:
        >>> round(gbce_beta(256, 1_000_001, 0.75), 6)
        0.250192
    """
    alpha = min(num_samples / max(num_classes - 1, 1), 1.0)
    return 1.0 - calibration * (1.0 - alpha)


def _add_angle(cosine: Tensor, angle: float) -> Tensor:
    """cos(theta + angle); beyond pi, where that would rise again, its tangent's level goes on.

    Deng et al., "ArcFace", CVPR 2019, and the authors' rule for theta + angle > pi.
    """
    # The sine's slope is infinite at |cosine| = 1: keep the gradient finite.
    sine = (1.0 - cosine * cosine).clamp_min(torch.finfo(cosine.dtype).eps).sqrt()
    turned = cosine * math.cos(angle) - sine * math.sin(angle)
    return torch.where(cosine > math.cos(math.pi - angle), turned, cosine - angle * math.sin(angle))


@dataclass(frozen=True)
class _Classes:
    """The classes that a step touches, renamed to rows of a smaller matrix."""

    weight: Tensor
    bias: Tensor | None
    ids: Tensor
    target: Tensor
    exclude: Tensor | None


def reference_unit_rows(table: Tensor, classes: Tensor, dtype: torch.dtype, sparse: bool) -> Tensor:
    """table[classes] in `dtype`, each row divided by its norm."""
    return F.normalize(gather_rows(table, classes, dtype, sparse), dim=1)


def _touched_rows(
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    target: Tensor,
    exclude: Tensor | None,
    dtype: torch.dtype | None,
    sparse: bool,
    rows_of: RowsOf,
) -> _Classes:
    """The rows of samples and targets by `rows_of`, in `dtype` or their own: not all C.

    Classes get the numbers 0, 1, ... in rising order; there are as many rows as ids and targets,
    the last ones unused, so that no size depends on data, but never more than C.
    """
    followed, ids_are_bad = followed_ids(ids, weight.shape[0])
    wanted = torch.cat((followed.reshape(-1), target.reshape(-1)))
    ordered, order = wanted.sort(stable=True)
    starts = torch.ones_like(ordered)
    starts[1:] = (ordered[1:] != ordered[:-1]).to(ordered.dtype)
    number = starts.cumsum(0) - 1
    name = torch.empty_like(wanted).scatter_(0, order, number)
    # Repeats of a class write the same number to the same place.
    classes = ordered[:1].expand_as(ordered).clone().scatter_(0, name, wanted)
    classes = classes[: weight.shape[0]]
    if on_cpu(weight) and not torch.compiler.is_compiling():  # where sizes may be looked at
        classes = classes[: int(number[-1]) + 1]
    local = None
    if exclude is not None:
        place = torch.searchsorted(ordered, exclude.contiguous()).clamp(max=ordered.numel() - 1)
        found = ordered[place] == exclude
        local = torch.where(found, number[place], -1)
    names = name[: ids.numel()].view_as(ids)
    return _Classes(
        rows_of(weight, classes, dtype or weight.dtype, sparse),
        None if bias is None else gather_rows(bias, classes, dtype or bias.dtype, sparse),
        names if ids_are_bad is None else names.masked_fill(ids_are_bad, -1),
        name[ids.numel() :].view_as(target),
        local,
    )


class Operands(NamedTuple):
    """input [B, D], weight [C, D] and bias [C] or None, as the parts of a loss multiply them."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Step:
    """What the parts of a loss know of the rows: T true classes each, K classes that are hits."""

    options: LossOptions
    samples: Samples | KeyedSamples
    num_classes: int
    target: Tensor
    """[B, T] rows of the weight; 0 where there is no true class."""
    there: Tensor
    """[B, T] which of them are there."""
    counted: Tensor
    """[B] whether any of the row's is."""
    bad: Tensor
    """[B] whether one of them is out of range."""
    hits: Tensor
    """[B, K] classes that are no negatives of the row, -1 for none."""
    sparse_grad: bool


def prepare(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    samples: Samples | KeyedSamples,
    exclude: Tensor | None,
    o: LossOptions,
    sparse_grad: bool,
    unit_rows: RowsOf,
) -> tuple[Operands, Step]:
    """What the parts of a loss multiply, and what else they need to know.

    With cosines, input and weight are unit rows, and the weight has only those that are touched; so
    it has in a traced graph with row-sparse gradients.

    Args:
        input: [B, D].
        weight: [C, D].
        bias: [C] or None.
        target: [B, T] int64; entries that are `ignore_index` are not there, other values outside
            [0, C) make the row NaN.
        samples: shared, or per row.
        exclude: [B, E] int64 or None: classes that are no negatives of the row; values outside
            [0, C) stand for none.
        o: the options.
        sparse_grad: gradients of weight and bias as sparse_coo tensors.
        unit_rows: `reference_unit_rows`, or what takes its place.
    """
    num_classes = weight.shape[0]
    there = target != o.ignore_index
    in_range = (target >= 0) & (target < num_classes)
    counted = there.any(dim=1)
    bad = (there & ~in_range).any(dim=1)
    safe = torch.where(there & in_range, target, 0)
    own = torch.where(there, target, -1)
    # A traced graph can use one row-sparse gradient, but can't add up several.
    if o.cosine or (sparse_grad and torch.compiler.is_compiling()):
        given = samples.materialize()
        c = _touched_rows(
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
        samples = given._replace(ids=c.ids)
        own = torch.where(there & in_range, safe, -1)
        sparse_grad = False  # the rows' own way back is sparse
    if o.cosine:
        input = F.normalize(torch.where(counted[:, None], input, 0).to(compute_dtype(input)), dim=1)
    hits = own if exclude is None else torch.cat((own, exclude.clamp_min(-1)), dim=1)
    step = Step(o, samples, num_classes, safe, there, counted, bad, hits, sparse_grad)
    return Operands(input, weight, bias), step


@dataclass(frozen=True)
class TargetTerms:
    """What the true classes add to a loss, which is own + share * the negatives' loss, all [B]."""

    z: Tensor
    """[B, T] corrected logits."""
    largest: Tensor
    """The largest of them."""
    logit: Tensor
    """Their logsumexp, which the softmax's negatives are compared with."""
    own: Tensor | None
    """None for 0."""
    share: float


def target_terms(product: Tensor, bias: Tensor | None, s: Step) -> TargetTerms:
    """From the products input · weight_t, NaN where they are infinite, and the biases of the
    targets, both [B, T]."""
    o, x = s.options, product
    if o.angular_margin != 0.0:
        x = _add_angle(x, o.angular_margin)
    if o.margin != 0.0:
        x = x - o.margin
    if bias is not None:
        x = x + bias
    z = cap(x / o.temperature, o.softcap or 0.0)
    if o.corrects_targets and s.samples.target_log_expected_count is not None:
        correction = correction_of(s.samples.target_log_expected_count, z.dtype).reshape(z.shape)
        z = z - torch.where(s.there, correction, 0)
    largest = z.detach().masked_fill(~s.there, -torch.inf).amax(dim=1)
    logit = torch.zeros_like(largest)
    own, share = None, 1.0
    if o.loss == "softmax":
        one = z.shape[1] == 1
        logit = z.squeeze(1) if one else z.masked_fill(~s.there, -torch.inf).logsumexp(dim=1)
        logit = torch.where(s.counted, logit, 0)
        if not one:
            own = logit - mean_of_targets(z, s)
    elif o.loss == "gbce":
        beta = gbce_beta(s.samples.num_samples, s.num_classes, o.calibration)
        share = 1.0 / (1 + s.samples.num_samples)
        own = beta * share * softplus(-z.squeeze(1))
    else:
        own = torch.where(s.there, softplus(z), 0).sum(dim=1) - mean_of_targets(z, s)
    return TargetTerms(z, largest, logit, own, share)


def mean_of_targets(z: Tensor, s: Step) -> Tensor:
    """[B] from z [B, T], over the true classes that are there."""
    return torch.where(s.there, z, 0).sum(dim=1) / s.there.sum(dim=1).clamp_min(1)


def finish_rows(
    terms: TargetTerms, negatives: Tensor, peak: Tensor, s: Step, smoothed: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, lse, target logit and error [B] from the negatives' loss and the largest of them.

    smoothed: the mean logit of all classes, with label smoothing.
    """
    o = s.options
    loss = negatives if terms.share == 1.0 else negatives * terms.share
    if terms.own is not None:
        loss = loss + terms.own
    if o.correction == "reweighted":
        loss = reweighted(loss)
    if smoothed is not None:
        loss = loss + o.label_smoothing * (mean_of_targets(terms.z, s) - smoothed)
    lse = terms.logit + negatives if o.loss == "softmax" else torch.maximum(terms.largest, peak)
    error = (terms.largest < peak).to(loss.dtype)
    loss = loss.masked_fill(s.bad, torch.nan)
    loss, lse, largest, error = (
        torch.where(s.counted, row, 0) for row in (loss, lse, terms.largest, error)
    )
    return loss, lse.detach(), largest, error


def smoothing_shares(s: Step, dtype: torch.dtype) -> tuple[Tensor, Tensor | float]:
    """What each sample counts for in the mean logit of all classes, [S], and the mean log n.

    A sample stands for 1 / n classes: weights 1 / n_s, normalised; for one if it is never drawn.
    """
    shared = s.samples.materialize()
    log_count = count_of_samples(shared.log_expected_count, s.options.corrects_samples)
    if log_count is None:
        return torch.zeros(shared.ids.shape, dtype=dtype, device=shared.ids.device).softmax(0), 0.0
    log_count = correction_of(log_count, dtype)
    share = (-log_count).softmax(dim=0)
    return share, matmul(share, log_count.masked_fill(share == 0, 0))


def _mean_logit(h: Tensor, weight: Tensor, bias: Tensor | None, s: Step) -> Tensor:
    """The mean corrected logit [B] of all classes, estimated from the samples.

    Logits are linear in W, so the mean is that of the rows of W, at the cost of reading them once.
    """
    share, mean_log_count = smoothing_shares(s, h.dtype)
    # The negatives look at every id, and make the losses NaN.
    ids = s.samples.materialize().ids.clamp(0, weight.shape[0] - 1)
    z = matmul(h, matmul(share, gather_rows(weight, ids, h.dtype, s.sparse_grad)))
    if bias is not None:
        z = z + matmul(share, gather_rows(bias, ids, h.dtype, s.sparse_grad))
    return z / s.options.temperature - mean_log_count


def composed_rows(
    operands: Operands, s: Step, negatives: NegativesLoss
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per-row loss, lse, target logit and error [B], as `loss_rows` gives them; differentiable.

    Args:
        operands, s: as `prepare` gives them.
        negatives: the sum over the samples.

    With several targets, the target logit is the largest. For the sigmoid losses lse is the largest
    corrected logit, target or sample, there being no logsumexp.
    """
    input, weight, bias = operands
    o, dtype = s.options, compute_dtype(input)
    h = torch.where(s.counted[:, None], input, 0).to(dtype)
    # One use each by the targets, the negatives and the mean of all logits.
    weights: tuple[Tensor, ...] = (weight,) * 3
    biases: tuple[Tensor | None, ...] = (bias,) * 3
    if s.sparse_grad:
        weights = fork(weight, 3)
        biases = biases if bias is None else fork(bias, 3)
    flat = s.target.reshape(-1)
    rows = gather_rows(weights[0], flat, dtype, s.sparse_grad).view(*s.target.shape, h.shape[1])
    offset = None
    if biases[0] is not None:
        offset = gather_rows(biases[0], flat, dtype, s.sparse_grad).view_as(s.target)
    product = infinite_is_nan((h[:, None, :] * rows).sum(dim=-1))
    terms = target_terms(product, offset, s)
    loss, peak = negatives(
        input,
        weights[1],
        biases[1],
        terms.logit,
        s.hits,
        s.counted,
        s.samples,
        1.0 / o.temperature,
        o.softcap or 0.0,
        o.remove_accidental_hits,
        o.loss != "softmax",
        s.sparse_grad,
        o.corrects_samples,
    )
    smoothed = None
    if o.label_smoothing > 0.0:
        smoothed = _mean_logit(h, weights[2], biases[2], s)
    return finish_rows(terms, loss, peak, s, smoothed)
