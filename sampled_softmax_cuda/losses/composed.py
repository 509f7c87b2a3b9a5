"""A loss of any options, composed of differentiable parts: targets, negatives, smoothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .gather import gather_rows
from .gradients import fork
from .rows import compute_dtype, correction_of, count_of_samples, infinite_is_nan, matmul
from .targets import (
    Operands,
    Step,
    TargetTerms,
    column,
    details_of_rows,
    label_smoothing,
    losses_of_rows,
    mean_of_targets,
    only,
    target_terms,
)

NegativesLoss = Callable[..., tuple[Tensor, Tensor]]
"""(input, weight, bias, target_logit, hits, counted, samples, inv_temperature, softcap,
remove_hits, sigmoid, sparse_grad, corrected) -> loss [B], peak [B]"""


def smoothing_shares(s: Step, dtype: torch.dtype) -> tuple[Tensor, Tensor | float, Tensor | None]:
    """The share of each sample in the mean logit of all classes, [S], the mean log n, and whether
    any sample counts; None: some does.

    A sample stands for 1 / n classes: weights 1 / n_s, normalised; for one if it is never drawn.
    Where none counts there is no mean, and nothing is smoothed.
    """
    shared = s.samples.materialize()
    log_count = count_of_samples(shared.log_expected_count, s.options.corrects_samples)
    if log_count is None:
        return (
            torch.zeros(shared.ids.shape, dtype=dtype, device=shared.ids.device).softmax(0),
            0.0,
            None,
        )
    log_count = correction_of(log_count, dtype)
    any_counts = (log_count < torch.inf).any()
    share = torch.where(any_counts, (-log_count).softmax(dim=0), 0)
    return share, matmul(share, log_count.masked_fill(share == 0, 0)), any_counts


def _mean_logit(
    h: Tensor, weight: Tensor, bias: Tensor | None, terms: TargetTerms, s: Step
) -> Tensor:
    """The mean corrected logit [B] of all classes, estimated from the samples; that of the targets
    where no sample counts.

    Logits are linear in W, so the mean is that of the rows of W, at the cost of reading them once.
    """
    share, mean_log_count, any_counts = smoothing_shares(s, h.dtype)
    # The negatives look at every id, and make the losses NaN.
    ids = s.samples.materialize().ids.clamp(0, weight.shape[0] - 1)
    z = matmul(h, matmul(share, gather_rows(weight, ids, h.dtype, s.sparse_grad)))
    if bias is not None:
        z = z + matmul(share, gather_rows(bias, ids, h.dtype, s.sparse_grad))
    z = z / s.options.temperature - mean_log_count
    return z if any_counts is None else torch.where(any_counts, z, mean_of_targets(terms.z, s))


def composed_rows(
    operands: Operands, s: Step, negatives: NegativesLoss
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per-row loss, lse, target logit and error [B], as `loss_rows` gives them; differentiable.

    Args:
        operands, s: as `targets.prepare` gives them.
        negatives: the sum over the samples.

    With several targets, the target logit is the largest. For the sigmoid losses lse is the largest
    corrected logit, target or sample, there being no logsumexp.
    """
    input, weight, bias = operands
    o, dtype = s.options, compute_dtype(input)
    h = only(column(s.counted), input).to(dtype)
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
        o.objective._sigmoid,
        s.sparse_grad,
        o.corrects_samples,
    )
    smoothed = None
    if label_smoothing(o) > 0.0:
        smoothed = _mean_logit(h, weights[2], biases[2], terms, s)
    details = details_of_rows(terms, loss, peak, s)
    return losses_of_rows(terms, loss, s, smoothed), *details
