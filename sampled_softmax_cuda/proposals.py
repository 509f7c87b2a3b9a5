"""The distributions that classes are drawn from, in the one form that all backends take."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from torch import Tensor


class Method(IntEnum):
    """How samples are drawn: what `method` means to the operators."""

    WITH_REPLACEMENT = 0
    DISTINCT = 1
    RACE = 2


class Kind(IntEnum):
    """The values of `kind` in the operators."""

    UNIFORM = 0
    LOG_UNIFORM = 1
    WEIGHTED = 2


class Proposal(NamedTuple):
    """A distribution over the classes 0 .. num_classes - 1, as the operators take it."""

    kind: int
    num_classes: int
    table: Tensor | None
    """int64 [C], the alias table of a weighted proposal (csrc/core/alias_table.h)."""
    probability_bits: Tensor | None
    """int64 [C], the bits of its float64 probabilities."""
    num_drawable: int
    """How many classes have a probability."""


def uniform(num_classes: int) -> Proposal:
    """q = 1 / C."""
    return Proposal(int(Kind.UNIFORM), num_classes, None, None, num_classes)


def log_uniform(num_classes: int) -> Proposal:
    """q_k = log((k + 2) / (k + 1)) / log(C + 1), for classes sorted by falling frequency."""
    return Proposal(int(Kind.LOG_UNIFORM), num_classes, None, None, num_classes)


def weighted(table: Tensor, probability_bits: Tensor, num_drawable: int) -> Proposal:
    """Any distribution, by its alias table."""
    kind = int(Kind.WEIGHTED)
    return Proposal(kind, table.shape[0], table, probability_bits, num_drawable)
