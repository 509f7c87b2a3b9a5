"""The draws of a key, and which of them are taken: [S] of the batch, or [B, S] of each row.

With replacement those are the first ones. Without, and without classes that are excluded, they are
the first ones that will do; or, where that would take too many, the classes that arrive first in an
exponential race.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._philox import philox_bits
from .._rules import may_look
from ..proposals import Method
from .distributions import Distribution
from .portable_math import portable_log

LEAST_LEFT, LEAST_LEFT_DISTINCT = 1e-6, 1e-10
"""The probability that exclusions must leave, with replacement and without: core/rejection.h."""


class Stream(NamedTuple):
    """The draws of a key from a distribution: [n] of subsequence 0, or [B, n] of several."""

    q: Distribution
    key: Tensor
    """int64 [2], (seed, offset)"""
    rows: Tensor | None = None
    """int64 [B], the subsequences less 1; None: subsequence 0."""

    @property
    def shape(self) -> torch.Size:
        """[B], or [] of a single one."""
        return self.key.shape[:0] if self.rows is None else self.rows.shape

    def ids(self, count: int) -> Tensor:
        """The first classes that are drawn, [*, count] int64."""
        return self.q.ids(self._bits(count))

    def arrival_times(self) -> Tensor:
        """When each class first arrives in an exponential race: E_k / q_k, float64 [*, C].

        Infinite for q = 0 and for what is no probability.
        """
        bits = self._bits(self.q.num_classes)
        u = (((bits >> 12) & (2**52 - 1)).to(torch.float64) + 0.5) * 2.0**-52
        q = self.q.probability(torch.arange(self.q.num_classes, device=self.key.device))
        return torch.where(q > 0, -portable_log(u) / q, math.inf)

    def _bits(self, count: int) -> Tensor:
        return philox_bits(self.key, 0, count, None if self.rows is None else self.rows + 1)


def excluded_mass(q: Distribution, exclude: Tensor) -> tuple[Tensor, Tensor]:
    """The joint probability of the classes of each row of a list.

    Args:
        exclude: int64 [B, E] ids; those outside [0, C) count for nothing, repeated ones once.

    Returns:
        Their probability [B], float64, and how many of them have any [B], int64.
    """
    ids = exclude.sort(dim=1).values
    counted = (ids >= 0) & (ids < q.num_classes)
    counted[:, 1:] &= ids[:, 1:] != ids[:, :-1]
    of_ids = torch.where(counted, q.probability(torch.where(counted, ids, 0)), 0.0)
    return of_ids.sum(dim=1), (of_ids > 0).sum(dim=1)


def mass_left(
    q: Distribution, exclude: Tensor, num_samples: int, method: int, num_drawable: int
) -> Tensor:
    """1 - Q of each row, float64 [B].

    Raises:
        RuntimeError: on the CPU, as of the kernels, if that or the number of classes is too little.
    """
    mass, lost = excluded_mass(q, exclude)
    left = 1.0 - mass.clamp(max=1.0)
    if num_samples > 0 and may_look(exclude):
        distinct = method != Method.WITH_REPLACEMENT
        few = num_drawable - lost < (num_samples if distinct else 1)
        if bool((few | (left < (LEAST_LEFT_DISTINCT if distinct else LEAST_LEFT))).any()):
            raise RuntimeError("sample: exclude leaves a row too few classes to draw from")
    return left


def draw_ids(
    stream: Stream,
    num_samples: int,
    method: int,
    exclude: Tensor | None = None,
    left: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The ids of a stream, and how many draws they took, excluded ones not counted.

    Args:
        num_samples: S.
        method: a `Method`.
        exclude: int64 [B, E], classes that a row must not have.
        left: float64 [B], the probability of all others.

    Returns:
        ids [*, S] and numbers of draws [*], int64. Both are -1 in a row of a race that has not S
        classes left.
    """
    if num_samples == 0:
        return stream.ids(0), stream.key.new_zeros(stream.shape)
    if method == Method.RACE:
        return _race(stream, num_samples, exclude, left)
    distinct = method == Method.DISTINCT
    if distinct or exclude is not None:
        ids, draws = _first_of_stream(stream, num_samples, distinct, exclude, left)
    else:
        ids, draws = stream.ids(num_samples), stream.key.new_empty(stream.shape)
    return ids, draws if distinct else torch.full_like(draws, num_samples)


def _first_seen(ids: Tensor) -> Tensor:
    """Where each id of [*, n] occurs in its row for the first time."""
    ordered, order = ids.sort(dim=-1, stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    return torch.zeros_like(first).scatter(-1, order, first)


def _excluded(ids: Tensor, exclude: Tensor | None) -> Tensor:
    """Which of ids [*, n] are in the row's list [B, E]; none without one."""
    if exclude is None or exclude.shape[1] == 0:
        return torch.zeros_like(ids, dtype=torch.bool)
    listed = exclude.sort(dim=1).values
    place = torch.searchsorted(listed, ids.contiguous()).clamp(max=listed.shape[1] - 1)
    return listed.gather(1, place) == ids


def _first_of_stream(
    stream: Stream,
    num_samples: int,
    distinct: bool,
    exclude: Tensor | None,
    left: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The first draws that will do [*, S], and how many were not excluded up to them [*]."""
    length = 2 * num_samples + 16
    most = 1e6 + 1e3 * stream.q.num_classes  # as in csrc/core/rejection.h
    if not distinct and left is not None and left.numel() > 0:
        most = (2 * num_samples + 128) / max(float(left.min()), LEAST_LEFT)
    while length < 2 * most:
        ids = stream.ids(length)
        allowed = ~_excluded(ids, exclude)
        taken = allowed & _first_seen(ids) if distinct else allowed
        if bool((taken.sum(dim=-1) >= num_samples).all()):
            place = torch.arange(length, device=ids.device).expand_as(ids)
            place = torch.where(taken, place, length).sort(dim=-1).values[..., :num_samples]
            draws = allowed.cumsum(dim=-1).gather(-1, place[..., -1:])[..., 0]
            return ids.gather(-1, place), draws
        length *= 2
    raise RuntimeError(
        f"sample: {num_samples} classes were not found in {length // 2} draws: the proposal does"
        " not draw its classes by their probabilities"
    )


def _race(
    stream: Stream, num_samples: int, exclude: Tensor | None, left: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The classes of the smallest E_k / q_k [*, S], and what stands for the number of draws [*]."""
    time = stream.arrival_times()
    classes = torch.arange(time.shape[-1], device=time.device).expand_as(time)
    time, order = time.masked_fill(_excluded(classes, exclude), torch.inf).sort(stable=True)
    ids, last = order[..., :num_samples], time[..., num_samples - 1]
    draws = last if left is None else last * left
    draws = draws.clamp(max=2.0**62).ceil().to(torch.int64).clamp(min=num_samples)
    if stream.rows is None:
        return ids, draws
    short = last == torch.inf
    return ids.masked_fill(short[:, None], -1), draws.masked_fill(short, -1)
