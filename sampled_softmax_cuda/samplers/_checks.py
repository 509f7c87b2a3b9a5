"""Checks of draws for single rows; every function's first argument opens its messages."""

from __future__ import annotations

import torch
from torch import Tensor

from .._rules import host_rules
from ..ops.sample import LEAST_LEFT, LEAST_LEFT_DISTINCT, distribution, excluded_mass
from ..proposals import Proposal


def check_rows(name: str, target: Tensor, num_true: int | None) -> tuple[int, ...]:
    """The shape of the batch: that of target, less the last dimension if that is num_true."""
    if num_true is None:
        return tuple(target.shape)
    if target.dim() == 0 or target.shape[-1] != num_true or num_true < 1:
        raise ValueError(
            f"{name}: target must be [*, num_true={num_true}], num_true >= 1, got"
            f" {list(target.shape)}"
        )
    return tuple(target.shape[:-1])


def check_exclude(name: str, exclude: Tensor, shape: tuple[int, ...], num_classes: int) -> None:
    """exclude is a list of ids for each row; on the CPU, none is too large."""
    if exclude.dim() == 0 or tuple(exclude.shape[:-1]) != shape:
        raise ValueError(
            f"{name}: exclude must be [*, E] with the batch's shape {list(shape)} before E, got"
            f" {list(exclude.shape)}"
        )
    if torch.compiler.is_compiling() or not host_rules(exclude) or exclude.numel() == 0:
        return
    largest = int(exclude.max())
    if largest >= num_classes:
        raise IndexError(f"{name}: exclude must be below num_classes={num_classes}, got {largest}")


def check_left(
    name: str,
    proposal: Proposal,
    exclude: Tensor,
    num_samples: int,
    replacement: bool,
) -> None:
    """On the CPU, exclude [B, E] leaves every row enough classes, and enough of the probability."""
    if torch.compiler.is_compiling() or not host_rules(exclude) or exclude.shape[1] == 0:
        return
    mass, lost = excluded_mass(distribution(proposal), exclude)
    needed = 1 if replacement else num_samples
    short = (proposal.num_drawable - lost < needed).nonzero()
    if short.numel() > 0:
        row = int(short[0])
        left = proposal.num_drawable - int(lost[row])
        raise ValueError(
            f"{name}: exclude leaves row {row} {left} classes of positive probability, {needed} are"
            " needed"
        )
    least = LEAST_LEFT if replacement else LEAST_LEFT_DISTINCT
    rare = (1.0 - mass < least).nonzero()
    if rare.numel() > 0:
        part = "a millionth" if replacement else "the 10^10th part"
        raise ValueError(
            f"{name}: exclude leaves row {int(rare[0])} less than {part} of the proposal's"
            " probability, too little to draw from: give its other classes larger weights"
        )
