"""A loss with all its options in plain PyTorch: the route of every problem that no kernel takes."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from torch import Tensor

from ..losses.composed import composed_rows
from ..losses.gather import unit_rows
from ..losses.problem import Problem
from ..losses.rows import count_of_samples, reweighted
from ..losses.targets import prepare
from ..samples import KeyedSamples, Samples
from .loss import loss_rows
from .negatives import negative_rows
from .per_row import per_row_rows


def negatives_loss(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_logit: Tensor,
    hits: Tensor,
    counted: Tensor | None,
    samples: Samples | KeyedSamples,
    inv_temperature: float,
    softcap: float,
    remove_hits: bool,
    sigmoid: bool,
    sparse_grad: bool,
    corrected: bool,
) -> tuple[Tensor, Tensor]:
    """The sum over the negatives that `losses.composed` asks for, shared or of each row."""
    given = _flat(samples.materialize())
    rows = negative_rows if given.shared else per_row_rows
    return rows(
        input,
        weight,
        bias,
        target_logit,
        hits,
        counted,
        given.ids,
        count_of_samples(given.log_expected_count, corrected),
        inv_temperature,
        softcap,
        remove_hits,
        sigmoid,
        sparse_grad,
    )


def _flat(samples: Samples) -> Samples:
    """Samples of rows [*] as samples of rows [B]; those shared by all rows as they are."""
    if samples.ids.dim() == 1:
        return samples
    ids, count = samples.ids, samples.log_expected_count
    ids = ids.reshape(prod(ids.shape[:-1]), ids.shape[-1])
    count = None if count is None else count.reshape(ids.shape)
    return replace(samples, ids=ids, log_expected_count=count)


def reference(p: Problem) -> tuple[Tensor, list[Tensor]]:
    """The loss, reduced or of rows [B], and lse, target logit and error [B]."""
    if not p.plain:
        operands, step = prepare(p, unit_rows)
        rows, *details = composed_rows(operands, step, negatives_loss)
        return p.reduce(rows, step.rows_that_count), details
    o, samples = p.options, p.samples.materialize()
    target_count = samples.target_log_expected_count
    rows, *details = loss_rows(
        p.input.reshape(-1, p.input.shape[-1]),
        p.weight,
        p.bias,
        p.target.reshape(-1),
        samples.ids,
        count_of_samples(samples.log_expected_count, o.corrects_samples),
        None if target_count is None or not o.corrects_targets else target_count.reshape(-1),
        1.0 / o.temperature,
        o.remove_accidental_hits,
        o.ignore_index,
        p.sparse_grad,
    )
    if o.reweighted:
        rows = reweighted(rows)
    return p.reduce(rows, p.target.reshape(-1) != o.ignore_index), details
