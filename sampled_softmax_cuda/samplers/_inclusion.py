"""The number of draws t that S distinct classes take: the solution of sum_k 1 - (1 - q_k)^t = S.

That sum can't be compared with S as it stands. Where a few classes have nearly all of the
probability it stays within a rounding error of S over many orders of magnitude of t, while the
expected counts of the rest are proportional to t. With the S likeliest classes on one side the
equation is

    A(t) = sum over the others of 1 - (1 - q)^t  =  sum over the S likeliest of (1 - q)^t = B(t)

in which nothing cancels. log A - log B rises and is concave in t, so a step of Newton's method ends
at the solution or before it, wherever it starts. Where t is wrong by orders of magnitude, a step
in log t goes further; it may go too far, and only sets the next place to look at.
"""

from __future__ import annotations

import math
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

_MAX_STEPS = 200  # some twenty are the most that was seen
_TOLERANCE = 1e-12
_MOST_TRIES = 1e306  # beyond it the race would run out of float64
_LEAST_PROBABILITY = 37.0 / 1.7e308  # of a class that surely arrives: no E of E / q is above 36.8
_LEAST_LOG_MISS = -745.0  # log of the least float64; a q that rounds to 1 misses no draw
_HEAD = 4096  # classes of a log-uniform proposal that are summed one by one
_STEPS_PER_E = 256  # of the quadrature over the rest, in the logarithm of the class number


def ordered_sum(x: Tensor) -> float:
    """The sum of a float64 vector, added up in an order that no number of threads changes."""
    row = 1024
    while x.numel() > 16 * row:
        rows = x.numel() // row
        x = torch.cat((x[: rows * row].view(rows, row).sum(dim=1), x[rows * row :]))
    return float(x.sum())


def refuse_tries(num_samples: int) -> NoReturn:
    """The error of weights that lie too far apart."""
    raise ValueError(
        f"{num_samples} distinct classes would take more draws than float64 can count, because the"
        " least weights are too small beside the others: make them 0, so that their classes are"
        " never drawn, or draw fewer classes"
    )


def list_tries(q: Tensor, num_samples: int) -> float:
    """The solution for a list of probabilities, float64 on the CPU; inf if all are drawn.

    Raises:
        ValueError: t, or the time of the race's last arrival, is too large for float64.
    """
    q = q[q > 0]
    if num_samples < q.numel():
        return solve_tries(torch.log1p(-q), num_samples)
    if num_samples > 1 and float(q.min()) < _LEAST_PROBABILITY:
        refuse_tries(num_samples)
    return math.inf


class _Side(NamedTuple):
    """Classes on one side of the equation."""

    log_miss: Tensor
    """float64 [n], log(1 - q)."""
    multiplicity: Tensor
    """float64 [n], how many classes each entry stands for."""


class _Point(NamedTuple):
    """log A - log B at a t, and its derivative by t."""

    value: float
    slope: float


def _at(tries: float, others: _Side, likeliest: _Side) -> _Point:
    seen = -torch.expm1(tries * others.log_miss)  # the chance that a class is among the draws
    a = ordered_sum(others.multiplicity * seen)
    a_slope = ordered_sum(others.multiplicity * others.log_miss * (seen - 1.0))
    # Relative to the one that is missed most often, since B itself may be below all numbers.
    most = float(likeliest.log_miss.max())
    missed = likeliest.multiplicity * torch.exp(tries * (likeliest.log_miss - most))
    b = ordered_sum(missed)
    b_slope = ordered_sum(missed * likeliest.log_miss)
    return _Point(math.log(a) - math.log(b) - tries * most, a_slope / a - b_slope / b)


def _sides(log_miss: Tensor, num_samples: int) -> tuple[_Side, _Side]:
    """The classes but the S likeliest, and these; equal ones are divided."""
    least = torch.kthvalue(log_miss, num_samples).values
    before, after = log_miss[log_miss < least], log_miss[log_miss > least]
    equal = log_miss.numel() - before.numel() - after.numel()
    taken = num_samples - before.numel()
    one = torch.ones((), dtype=torch.float64)
    others, likeliest = (
        _Side(
            torch.cat((some, least[None])),
            torch.cat((one.expand(some.numel()), one.new_tensor([count]))),
        )
        for some, count in ((after, float(equal - taken)), (before, float(taken)))
    )
    return others, likeliest


def _sides_of_list(log_miss: Tensor, multiplicity: Tensor, num_samples: int) -> tuple[_Side, _Side]:
    """The same of classes by falling q, of which every entry stands for some."""
    before = multiplicity.cumsum(0) - multiplicity
    taken = torch.minimum((num_samples - before).clamp(min=0), multiplicity)
    left = multiplicity - taken
    return (
        _Side(log_miss[left > 0], left[left > 0]),
        _Side(log_miss[taken > 0], taken[taken > 0]),
    )


def solve_tries(log_miss: Tensor, num_samples: int, multiplicity: Tensor | None = None) -> float:
    """t with sum_k m_k (1 - exp(t log_miss_k)) = num_samples.

    Args:
        log_miss: float64 [n], log(1 - q) of each class, on the CPU; -inf where q rounds to 1.
        num_samples: less than the number of classes of positive q.
        multiplicity: float64 [n], how many classes each entry stands for, which then come by
            falling q; one each if None.

    Raises:
        ValueError: t is too large for float64.
    """
    if num_samples == 1:
        return 1.0  # probabilities sum to 1
    log_miss = log_miss.clamp(min=_LEAST_LOG_MISS)
    if multiplicity is None:
        sides = _sides(log_miss, num_samples)
    else:
        sides = _sides_of_list(log_miss, multiplicity, num_samples)
    tries, low, high = float(num_samples), float(num_samples), math.inf
    for _ in range(_MAX_STEPS):
        value, slope = _at(tries, *sides)
        step = -value / slope
        if abs(step) <= _TOLERANCE * tries:
            return tries + step
        # Far above the solution the difference of the two is a rounding error.
        improved = tries + step > max(low, 0.01 * tries)
        low = tries + step if improved else low
        if low > _MOST_TRIES:
            refuse_tries(num_samples)
        near, further = improved and step < tries, math.inf
        if value < 0:
            further = min(tries * math.exp(min(step / tries, 700.0)), _MOST_TRIES)
        else:
            high = tries
        nearer = low if near else math.sqrt(low) * math.sqrt(high)
        tries = further if further < high else nearer
    raise RuntimeError(f"no number of draws was found that gives {num_samples} distinct classes")


def uniform_tries(num_classes: int, num_samples: int) -> float:
    """The solution for q = 1 / C."""
    if num_samples == num_classes:
        return math.inf
    missed = num_classes - num_samples  # by an integer, of which no digit is lost
    few = 2 * num_samples < num_classes
    log_missed = math.log1p(-num_samples / num_classes) if few else math.log(missed / num_classes)
    return log_missed / math.log1p(-1.0 / num_classes)


def _log_uniform_log_miss(n: Tensor, num_classes: int) -> Tensor:
    """log(1 - q) of class n - 1, n float64."""
    return torch.log1p(-torch.log1p(1.0 / n) / math.log1p(num_classes))


def log_uniform_tries(num_classes: int, num_samples: int) -> float:
    """The solution for the log-uniform proposal, in time and memory that don't grow with C.

    The first classes are summed; over the rest, sum_{n=a}^{b} g(n) is the integral of g from
    a - 1/2 to b + 1/2 (the next term of the Euler-Maclaurin formula is smaller by 1 / (24 a^2)),
    taken by Simpson's rule in log n.
    """
    if num_samples == num_classes:
        return math.inf
    head = torch.arange(1, min(num_classes, _HEAD) + 1, dtype=torch.float64)
    if num_classes <= _HEAD:
        return solve_tries(_log_uniform_log_miss(head, num_classes), num_samples)
    low, high = math.log(_HEAD + 0.5), math.log(num_classes + 0.5)
    intervals = 2 * max(1, math.ceil((high - low) * _STEPS_PER_E / 2))
    nodes = torch.linspace(low, high, intervals + 1, dtype=torch.float64).exp()
    simpson = torch.full_like(nodes, 2.0)
    simpson[1::2] = 4.0
    simpson[0] = simpson[-1] = 1.0
    simpson *= nodes * ((high - low) / intervals / 3.0)
    return solve_tries(
        _log_uniform_log_miss(torch.cat((head, nodes)), num_classes),
        num_samples,
        torch.cat((torch.ones_like(head), simpson)),
    )
