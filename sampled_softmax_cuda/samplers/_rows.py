"""The operators of rows with draws of their own as PyTorch sees them, or their reference."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._load import library_loaded, native_for
from ..reference import sample_rows as reference
from ..reference.sample import LogUniform, Method, Uniform, Weighted
from ._ops import Drawn, Proposal, check_table


class Kind(IntEnum):
    """What `kind` means to the operators."""

    UNIFORM = 0
    LOG_UNIFORM = 1
    WEIGHTED = 2


class ProposalArguments(NamedTuple):
    """A proposal as the operators take it."""

    kind: int
    num_classes: int
    table: Tensor | None
    probability_bits: Tensor | None
    num_drawable: int


def proposal_arguments(proposal: Proposal, num_drawable: int) -> ProposalArguments:
    """What stands for `proposal` in a call; `num_drawable` classes of it have a probability."""
    if isinstance(proposal, Weighted):
        tensors = proposal.table, proposal.probability_bits
        return ProposalArguments(Kind.WEIGHTED, proposal.num_classes, *tensors, num_drawable)
    kind = Kind.UNIFORM if isinstance(proposal, Uniform) else Kind.LOG_UNIFORM
    return ProposalArguments(kind, proposal.num_classes, None, None, num_drawable)


def proposal_of(arguments: ProposalArguments) -> Proposal:
    """The proposal that `proposal_arguments` was given."""
    if arguments.table is not None and arguments.probability_bits is not None:
        return Weighted(arguments.table, arguments.probability_bits)
    if arguments.kind == Kind.UNIFORM:
        return Uniform(arguments.num_classes)
    return LogUniform(arguments.num_classes)


def sample_rows(
    proposal: ProposalArguments,
    key: Tensor,
    target: Tensor,
    num_samples: int,
    method: Method,
    tries: Tensor | None,
    exclude: Tensor | None,
    keep_ids: bool = True,
) -> Drawn:
    """Ids of rows, with log expected counts; see `reference.sample_rows.sample_rows`."""
    rest = (num_samples, int(method), tries, exclude, keep_ids)
    if not native_for(key.device, "sample_rows"):
        return reference.sample_rows(proposal_of(proposal), key, target, *rest)
    try:
        drawn: Drawn = torch.ops.sampled_softmax.sample_rows(key, target, *proposal, *rest)
    except RuntimeError:
        check_table(proposal.table)
        raise
    return drawn


def _fake_sample_rows(
    key: Tensor,
    target: Tensor,
    kind: int,
    num_classes: int,
    table: Tensor | None,
    probability_bits: Tensor | None,
    num_drawable: int,
    num_samples: int,
    method: int,
    tries: Tensor | None,
    exclude: Tensor | None,
    keep_ids: bool,
) -> tuple[Any, ...]:
    rows = target.shape[0]
    kept = num_samples if keep_ids else 0
    return (
        target.new_empty(rows, kept),
        target.new_empty(rows if keep_ids else 0),
        target.new_empty(rows, kept, dtype=torch.float32),
        torch.empty_like(target, dtype=torch.float32, memory_format=torch.contiguous_format),
    )


if library_loaded():
    torch.library.register_fake("sampled_softmax::sample_rows", _fake_sample_rows)
