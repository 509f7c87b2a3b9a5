"""The sampling operators in PyTorch: for the same key exactly the ids of the compiled kernels.

The batch takes the draws of the key's subsequence 0, and row r, where every row has its own, those
of subsequence r + 1. The formula of their counts stands in csrc/core/logit_correction.h.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._build import operator_name
from ..proposals import Method, Proposal
from .distributions import Distribution, distribution
from .draws import Stream, draw_ids, mass_left

_CHUNK = 1 << 22  # draws of rows at a time

Drawn = tuple[Tensor, Tensor, Tensor, Tensor]
"""ids, numbers of draws, log n of the ids and of the targets"""


def log_counts(
    proposal: Proposal,
    ids: Tensor,
    num_samples: int,
    tries: Tensor | None,
) -> Tensor:
    """log n of any ids, float32; 0 for an id outside [0, C), -inf for a class with q = 0."""
    return _log_counts(distribution(proposal), ids, num_samples, tries, -math.inf)


def _log_counts(
    q: Distribution,
    ids: Tensor,
    num_samples: int,
    tries: Tensor | None,
    log_zero: float = 0.0,
    left: Tensor | None = None,
) -> Tensor:
    """log n of ids, float32: log(S q), or log(-expm1(t log1p(-q))) with t tries; 0 for an id
    outside [0, C), NaN for what is no probability.

    Args:
        log_zero: what it is for q = 0; 0 where it is to correct a logit.
        left: [B] for ids [B, n], what q is divided by; where it is NaN, so is the count.
    """
    valid = (ids >= 0) & (ids < q.num_classes)
    of_ids = q.probability(torch.where(valid, ids, 0))
    if left is not None:
        part = left[:, None]
        of_ids = torch.where(part == 1, of_ids, (of_ids / part).clamp(max=1.0))
    if tries is None:
        count = of_ids.log() + math.log(num_samples)
    else:
        count = (-torch.expm1(tries * torch.log1p(-of_ids))).log()
    count = torch.where((of_ids > 0) & (of_ids < 2), count, math.nan)
    count = torch.where(of_ids == 0, log_zero, count)
    count = torch.where(valid, count, 0.0).to(torch.float32)
    return count if left is None else count.masked_fill(left.isnan()[:, None], torch.nan)


# How many draws it takes depends on what they are, which no graph can hold: under torch.compile the
# search is one operator.
@torch.library.custom_op(operator_name("reference_distinct"), mutates_args=())
def _distinct_op(
    key: Tensor,
    num_samples: int,
    kind: int,
    num_classes: int,
    table: Tensor | None,
    probability_bits: Tensor | None,
) -> tuple[Tensor, Tensor]:
    proposal = Proposal(kind, num_classes, table, probability_bits, num_classes)
    return draw_ids(Stream(distribution(proposal), key), num_samples, Method.DISTINCT)


@_distinct_op.register_fake
def _(key: Tensor, num_samples: int, *proposal: object) -> tuple[Tensor, Tensor]:
    return key.new_empty(num_samples), key.new_empty(())


def sample(
    proposal: Proposal,
    key: Tensor,
    target: Tensor,
    num_samples: int,
    method: int,
    tries: Tensor | None,
    exclude: Tensor | None = None,
    per_row: bool = False,
    keep_ids: bool = True,
) -> Drawn:
    """The twin of the operator `sample`.

    Args:
        proposal: what to draw from.
        key: int64 [2], (seed, offset).
        target: int64 of any shape; [B, T] with per_row.
        num_samples: S.
        method: a `Method`.
        tries: float64 [], the t of the expected counts without replacement; None: the draw's own
            number of draws, or each row's.
        exclude: int64 [B, E] or None, classes that a row must not have.
        per_row: whether every row has draws of its own.
        keep_ids: whether more than the log counts of the targets is wanted.

    Returns:
        ids [S] int64, number of draws [] int64, log n of the ids [S] and of the targets, float32,
        as corrections: 0 for a class that is never drawn. With per_row [B, S], [B], [B, S] and
        [B, T], all but the last empty without keep_ids.

    Raises:
        RuntimeError: on the CPU, an exclude that leaves a row too few classes; a proposal that does
            not draw its classes by their probabilities.
    """
    q = distribution(proposal)
    if per_row:
        step = max(1, _CHUNK // (q.num_classes if method == Method.RACE else 2 * num_samples + 16))
        parts = []
        for begin in range(0, max(target.shape[0], 1), step):
            some = target[begin : begin + step]
            rows = torch.arange(begin, begin + some.shape[0], device=key.device)
            how = (num_samples, method, tries, exclude, proposal.num_drawable, keep_ids)
            parts.append(_draw_rows(Stream(q, key, rows), some, *how))
        ids, draws, counts, target_counts = (torch.cat(part) for part in zip(*parts, strict=True))
        return ids, draws, counts, target_counts
    if method == Method.DISTINCT and torch.compiler.is_compiling():
        ids, draws = _distinct_op(key, num_samples, *proposal[:4])
    else:
        ids, draws = draw_ids(Stream(q, key), num_samples, method)
    if method != Method.WITH_REPLACEMENT and tries is None:
        tries = draws.to(torch.float64)
    counts = _log_counts(q, ids, num_samples, tries)
    return ids, draws, counts, _log_counts(q, target, num_samples, tries)


def _draw_rows(
    stream: Stream,
    target: Tensor,
    num_samples: int,
    method: int,
    tries: Tensor | None,
    exclude: Tensor | None,
    num_drawable: int,
    keep_ids: bool,
) -> Drawn:
    """`sample` with per_row, for the rows of a stream and their targets [B, T]."""
    q, rows, left = stream.q, stream.rows, None
    assert rows is not None
    if exclude is not None:
        exclude = exclude[rows]
        left = mass_left(q, exclude, num_samples, method, num_drawable)
    observed = method != Method.WITH_REPLACEMENT and tries is None
    ids, draws = rows.new_empty(rows.shape[0], 0), rows[:0]
    if keep_ids or observed:
        ids, draws = draw_ids(stream, num_samples, method, exclude, left)
        if method == Method.RACE:  # no count is a number in a row that is short of classes
            left = torch.where(draws < 0, torch.nan, 1.0 if left is None else left)
    if observed:
        tries = draws.to(torch.float64)[:, None]
    if not keep_ids:
        ids, draws = ids[:, :0], draws[:0]
    counts = _log_counts(q, ids, num_samples, tries, left=left)
    return ids, draws, counts, _log_counts(q, target, num_samples, tries, left=left)
