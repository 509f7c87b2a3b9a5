"""The number of draws t that S distinct classes take: the solution of sum_k 1 - (1 - q_k)^t = S.

The left side is what t draws are expected to find, a rising concave function of t that is at most t
at t = S; so Newton's method from there goes up to the solution and never past it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MAX_STEPS = 1000
_HEAD = 4096  # classes of a log-uniform proposal that are summed one by one
_STEPS_PER_E = 256  # of the quadrature over the rest, in the logarithm of the class number


def ordered_sum(x: Tensor) -> float:
    """The sum of a float64 vector, added up in an order that no number of threads changes."""
    row = 1024
    while x.numel() > 16 * row:
        rows = x.numel() // row
        x = torch.cat((x[: rows * row].view(rows, row).sum(dim=1), x[rows * row :]))
    return float(x.sum())


def solve_tries(log_miss: Tensor, num_samples: int, multiplicity: Tensor | None = None) -> float:
    """t with sum_k m_k (1 - exp(t log_miss_k)) = num_samples.

    Args:
        log_miss: float64 [n], log(1 - q) of each class, on the CPU.
        num_samples: less than the number of classes of positive q.
        multiplicity: float64 [n], how many classes each entry stands for; one each if None.
    """
    tries = float(num_samples)
    for _ in range(_MAX_STEPS):
        seen = -torch.expm1(tries * log_miss)  # the chance that a class is among the draws
        slope = (seen - 1.0) * log_miss
        if multiplicity is not None:
            seen, slope = seen * multiplicity, slope * multiplicity
        step = (num_samples - ordered_sum(seen)) / ordered_sum(slope)
        tries += step
        if not step > 1e-13 * tries:
            break
    return tries


def uniform_tries(num_classes: int, num_samples: int) -> float:
    """The solution for q = 1 / C."""
    if num_samples == num_classes:
        return math.inf
    return math.log1p(-num_samples / num_classes) / math.log1p(-1.0 / num_classes)


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
