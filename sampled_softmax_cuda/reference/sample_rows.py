"""Draws of which every row has its own, in PyTorch: exactly the ids of the compiled kernels.

Row r takes the draws of the key's subsequence r + 1. Without replacement, and without the classes
that it must not have, it takes the first ones of its stream that will do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._philox import philox_bits
from ..proposals import Method, Proposal
from .sample import (
    arrival_time,
    distribution,
    log_expected_count,
    most_distinct_draws,
)

_CHUNK = 1 << 22  # draws at a time
LEAST_LEFT, LEAST_LEFT_DISTINCT = 1e-6, 1e-10
"""The probability that exclusions must leave, with replacement and without: core/rejection.h."""


def excluded_mass(proposal: Proposal, exclude: Tensor) -> tuple[Tensor, Tensor]:
    """The joint probability of the classes of each row of a list.

    Args:
        exclude: int64 [B, E] ids; those outside [0, C) count for nothing, repeated ones once.

    Returns:
        Their probability [B], float64, and how many of them have any [B], int64.
    """
    ids = exclude.sort(dim=1).values
    counted = (ids >= 0) & (ids < proposal.num_classes)
    counted[:, 1:] &= ids[:, 1:] != ids[:, :-1]
    known = distribution(proposal).probability(torch.where(counted, ids, 0))
    q = torch.where(counted, known, 0.0)
    return q.sum(dim=1), (q > 0).sum(dim=1)


def _excluded(ids: Tensor, exclude: Tensor | None) -> Tensor:
    """Which of ids [B, n] are in the row's list [B, E]."""
    if exclude is None or exclude.shape[1] == 0:
        return torch.zeros_like(ids, dtype=torch.bool)
    listed = exclude.sort(dim=1).values
    place = torch.searchsorted(listed, ids.contiguous()).clamp(max=listed.shape[1] - 1)
    return listed.gather(1, place) == ids


def _first_seen(ids: Tensor) -> Tensor:
    """Where each id of [B, n] occurs in its row for the first time."""
    ordered, order = ids.sort(dim=1, stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.zeros_like(first).scatter(1, order, first)


def _first_of_stream(
    proposal: Proposal,
    key: Tensor,
    stream: Tensor,
    num_samples: int,
    distinct: bool,
    exclude: Tensor | None,
    left: Tensor,
) -> tuple[Tensor, Tensor]:
    """The first draws that will do [B, S], and how many were not excluded up to them [B]."""
    length = 2 * num_samples + 16 if distinct or exclude is not None else num_samples
    most = most_distinct_draws(proposal.num_classes)
    if not distinct and exclude is not None and left.numel() > 0:
        most = (2 * num_samples + 128) / max(float(left.min()), LEAST_LEFT)
    q = distribution(proposal)
    while length < 2 * most:
        ids = q.ids(philox_bits(key, 0, length, stream))
        allowed = ~_excluded(ids, exclude)
        taken = allowed & _first_seen(ids) if distinct else allowed
        if bool((taken.sum(dim=1) >= num_samples).all()):
            place = torch.arange(length, device=ids.device).expand_as(ids)
            place = torch.where(taken, place, length).sort(dim=1).values[:, :num_samples]
            draws = allowed.cumsum(dim=1).gather(1, place[:, -1:])[:, 0]
            return ids.gather(1, place), draws
        length *= 2
    raise RuntimeError(
        f"sample: {num_samples} classes were not found in {length} draws: the proposal does not"
        " draw its classes by their probabilities"
    )


def _race(
    proposal: Proposal,
    key: Tensor,
    stream: Tensor,
    num_samples: int,
    exclude: Tensor | None,
    left: Tensor,
) -> tuple[Tensor, Tensor]:
    """The classes of the smallest E_k / q_k [B, S], and what stands for the number of draws [B].

    Both are -1 in a row that has not S classes left.
    """
    classes = torch.arange(proposal.num_classes, device=key.device)
    bits = philox_bits(key, 0, proposal.num_classes, stream)
    time = arrival_time(bits, distribution(proposal).probability(classes))
    time = time.masked_fill(_excluded(classes.expand_as(bits), exclude), torch.inf)
    time, order = time.sort(dim=1, stable=True)
    draws = (time[:, num_samples - 1] * left).clamp(max=2.0**62).ceil().to(torch.int64)
    short = time[:, num_samples - 1] == torch.inf
    ids = order[:, :num_samples].masked_fill(short[:, None], -1)
    return ids, torch.where(short, -1, draws.clamp(min=num_samples))


def _log_counts(
    proposal: Proposal,
    ids: Tensor,
    num_samples: int,
    tries: Tensor | None,
    left: Tensor,
) -> Tensor:
    """log n of ids [B, n] under q / (1 - Q), float32, as corrections: 0 for an id outside [0, C)
    and for a class that is never drawn."""
    valid = (ids >= 0) & (ids < proposal.num_classes)
    q = distribution(proposal).probability(torch.where(valid, ids, 0))
    q = torch.where(left[:, None] == 1, q, (q / left[:, None]).clamp(max=1.0))
    count = log_expected_count(q, num_samples, tries, 0.0)
    count = torch.where(valid, count, 0.0).to(torch.float32)
    return count.masked_fill(left.isnan()[:, None], torch.nan)


def draw_rows(
    proposal: Proposal,
    key: Tensor,
    rows: Tensor,
    num_samples: int,
    method: int,
    exclude: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The ids [B, S] of some rows, and how many draws they took [B], excluded ones not counted.

    Args:
        rows: int64 [B], which rows of the batch.
        exclude: [B, E], their lists.
    """
    if num_samples == 0:
        return rows.new_empty(rows.shape[0], 0), torch.zeros_like(rows)
    left = _left(proposal, rows, exclude)
    if method == Method.RACE:
        return _race(proposal, key, rows + 1, num_samples, exclude, left)
    distinct = method == Method.DISTINCT
    ids, draws = _first_of_stream(proposal, key, rows + 1, num_samples, distinct, exclude, left)
    return ids, draws if distinct else torch.full_like(draws, num_samples)


def _left(proposal: Proposal, rows: Tensor, exclude: Tensor | None) -> Tensor:
    """1 - Q of each row, float64 [B]."""
    if exclude is None:
        return torch.ones(rows.shape[0], dtype=torch.float64, device=rows.device)
    return 1.0 - excluded_mass(proposal, exclude)[0].clamp(max=1.0)


def sample_rows(
    proposal: Proposal,
    key: Tensor,
    target: Tensor,
    num_samples: int,
    method: int,
    tries: Tensor | None,
    exclude: Tensor | None,
    keep_ids: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The twin of the operator `sample` for draws of single rows.

    Args:
        proposal: what to draw from.
        key: int64 [2], (seed, offset).
        target: int64 [B, T].
        num_samples: S.
        method: a `Method`.
        tries: float64 [], the t of the expected counts without replacement; None: each row's own
            number of draws.
        exclude: int64 [B, E] or None, classes that a row must not have.
        keep_ids: whether more than the log counts of the targets is wanted.

    Returns:
        ids [B, S], numbers of draws [B], log n of the ids [B, S] and of the targets [B, T]. All but
        the last are empty without keep_ids.
    """
    batch = target.shape[0]
    per_row = proposal.num_classes if method == Method.RACE else 2 * num_samples + 16
    step = max(1, _CHUNK // per_row)
    parts = []
    for begin in range(0, batch, step):
        rows = torch.arange(begin, min(begin + step, batch), device=key.device)
        some = None if exclude is None else exclude[begin : begin + step]
        left = _left(proposal, rows, some)
        observed = method != Method.WITH_REPLACEMENT and tries is None
        ids, draws = rows.new_empty(rows.shape[0], 0), rows[:0]
        if keep_ids or observed:
            ids, draws = draw_rows(proposal, key, rows, num_samples, method, some)
        t = draws.to(torch.float64)[:, None] if observed else tries
        if method == Method.RACE and (keep_ids or observed):
            left = torch.where(draws < 0, torch.nan, left)  # no count is a number then
        if not keep_ids:
            ids, draws = ids[:, :0], draws[:0]
        counts = _log_counts(proposal, ids, num_samples, t, left)
        target_counts = _log_counts(proposal, target[begin : begin + step], num_samples, t, left)
        parts.append((ids, draws, counts, target_counts))
    if not parts:
        empty = target.new_empty(0, num_samples if keep_ids else 0)
        return (
            empty,
            target.new_empty(0),
            empty.float(),
            torch.empty_like(target, dtype=torch.float32),
        )
    ids, draws, counts, target_counts = (torch.cat(part) for part in zip(*parts, strict=True))
    return ids, draws, counts, target_counts
