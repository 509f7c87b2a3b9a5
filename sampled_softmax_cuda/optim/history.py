"""The debts of untouched rows of one parameter: the step up to which each has paid, and the numbers
of the steps since."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..updates import HISTORY_COLUMNS, Rule, UpdateOptions
from .state import lazy_zeros

# Steps that a history remembers; after as many all rows pay. 3.5 MiB.
CAPACITY = 1 << 16


def debt_horizon(options: UpdateOptions, dtype: torch.dtype) -> int:
    """The steps after which the moves that a step without gradient adds to a debt are below the
    rounding of the parameter."""
    if not options.replay:
        return 0
    ratio = options.beta1
    if options.rule.adam:
        ratio /= math.sqrt(options.beta2)
    elif options.l2 > 0:  # the faster of two modes whose factors have the product beta1
        ratio = math.sqrt(ratio)
    if ratio <= 0:
        return 1
    least = 1e-18 if dtype == torch.float64 else 1e-10
    steps = max(math.ceil(math.log(least) / math.log(ratio)), 1)
    # Powers of two, so that a beta1 that rises in each step changes it rarely.
    return 1 << (steps - 1).bit_length()


def check_horizon(fn: str, name: object, options: UpdateOptions, dtype: torch.dtype) -> None:
    """ValueError if debts of a parameter would have to be remembered for too many steps."""
    steps = debt_horizon(options, dtype)
    if steps >= CAPACITY - 2:
        raise ValueError(
            f"{fn}: skipped='replay' would remember {steps:,} steps of {name} for a beta1 or"
            f" momentum of {options.beta1}, and fewer than {CAPACITY - 2:,} are kept: use"
            " skipped='decay'"
        )


class History:
    """The history of one parameter from step `step` on, at which no row owes anything.

    Attributes:
        last_step: int32 [C].
        numbers: float64 [HISTORY_COLUMNS, CAPACITY].
        horizon: as in `RowUpdate`.
    """

    def __init__(self, p: Tensor, step: Tensor, options: UpdateOptions, fresh: bool) -> None:
        self.horizon = debt_horizon(options, p.dtype)
        self.options = options
        self.last_step = lazy_zeros((p.shape[0],), torch.int32, p.device)
        self.numbers = lazy_zeros((HISTORY_COLUMNS, CAPACITY), torch.float64, p.device)
        self.steps = 0  # since all rows have paid: those that the host has seen
        if not fresh:
            self.last_step.copy_(step.to(torch.int32))
        if options.rule == Rule.SGD:  # a product of no matrices
            at = (step.to(torch.int64) % CAPACITY).reshape(1)
            self.numbers[3].index_fill_(0, at, 1.0)
            self.numbers[6].index_fill_(0, at, 1.0)

    def serves(self, options: UpdateOptions, dtype: torch.dtype) -> bool:
        """Whether debts under these options can be added to those that are there."""
        return (
            options.replay == self.options.replay
            and debt_horizon(options, dtype) <= self.horizon
            and self.steps < CAPACITY - 2
        )
