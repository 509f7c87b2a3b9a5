"""The sampling operators as PyTorch sees them, and the choice between kernels and reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._arguments import describe
from .._rules import may_look
from ..proposals import Method, Proposal
from ..reference import sample as reference
from ..reference import sample_rows as reference_rows
from ..reference.sample import sample_distinct, sample_race
from ..reference.sample_rows import LEAST_LEFT, LEAST_LEFT_DISTINCT, excluded_mass
from .library import has_native, library_loaded, native_for

__all__ = [
    "LEAST_LEFT",
    "LEAST_LEFT_DISTINCT",
    "build_alias_table",
    "check_table",
    "excluded_mass",
    "log_counts",
    "new_key",
    "sample",
    "sample_distinct",
    "sample_race",
    "sample_rows",
]

Drawn = tuple[Tensor, Tensor, Tensor, Tensor]
"""ids, numbers of draws, log n of the ids and of the targets."""

_KEY_LIMIT = 2**63 - 1  # all that torch.randint can do


def new_key(device: torch.device, generator: torch.Generator | None) -> Tensor:
    """(seed, offset) of a draw, int64 [2], by a built-in operator: a CUDA graph can hold it."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"sample: generator must be a torch.Generator or None, got {describe(generator)}:"
            " pass torch.Generator().manual_seed(seed)"
        )
    return torch.randint(_KEY_LIMIT, (2,), device=device, generator=generator)


def _ops() -> Any:
    return torch.ops.sampled_softmax


def sample(
    proposal: Proposal,
    key: Tensor,
    target: Tensor,
    num_samples: int,
    method: Method,
    tries: Tensor | None,
) -> Drawn:
    """Draw ids, with the log expected counts of ids and targets; see `reference.sample.sample`."""
    rest = (num_samples, int(method), tries)
    if not native_for(key.device, "sample"):
        return reference.sample(proposal, key, target, *rest)
    return _drawn(proposal, key, target, *rest)


def _drawn(proposal: Proposal, key: Tensor, target: Tensor, *rest: Any) -> Drawn:
    try:
        drawn: Drawn = _ops().sample(key, target, *proposal, *rest)
    except RuntimeError:
        check_table(proposal.table)
        raise
    return drawn


def check_table(table: Tensor | None) -> None:
    """IndexError, after an error of the kernels, if the alias table is the reason for it."""
    if table is not None and may_look(table):
        reference.check_aliases(table)


def log_counts(proposal: Proposal, ids: Tensor, num_samples: int, tries: Tensor | None) -> Tensor:
    """log n of any ids, float32 of their shape; log q with num_samples=1 and no tries."""
    if not native_for(ids.device, "log_counts"):
        return reference.log_counts(proposal, ids, num_samples, tries)
    counts: Tensor = _ops().log_counts(ids.contiguous(), *proposal, num_samples, tries)
    return counts


def sample_rows(
    proposal: Proposal,
    key: Tensor,
    target: Tensor,
    num_samples: int,
    method: Method,
    tries: Tensor | None,
    exclude: Tensor | None,
    keep_ids: bool = True,
) -> Drawn:
    """Ids of rows, with log expected counts; see `reference.sample_rows.sample_rows`."""
    rest = (num_samples, int(method), tries, exclude)
    if not native_for(key.device, "sample"):
        return reference_rows.sample_rows(proposal, key, target, *rest, keep_ids)
    return _drawn(proposal, key, target, *rest, True, keep_ids)


def build_alias_table(probabilities: Tensor) -> Tensor:
    """The alias table int64 [C] of float64 probabilities [C], both on the CPU."""
    if not has_native():
        return reference.build_alias_table(probabilities)
    table: Tensor = _ops().build_alias_table(probabilities)
    return table


# --- what PyTorch needs to know of the operators --------------------------------------------------


def _fake_sample(
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
    exclude: Tensor | None = None,
    per_row: bool = False,
    keep_ids: bool = True,
) -> tuple[Any, ...]:
    rows = target.shape[:1] if per_row else ()
    ids = target.new_empty(*rows, num_samples if keep_ids else 0)
    return (
        ids,
        target.new_empty(rows if keep_ids else (0,)),
        torch.empty_like(ids, dtype=torch.float32),
        torch.empty_like(target, dtype=torch.float32, memory_format=torch.contiguous_format),
    )


def _fake_log_count(ids: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(ids, dtype=torch.float32, memory_format=torch.contiguous_format)


def _fake_table(probabilities: Tensor) -> Tensor:
    return torch.empty_like(probabilities, dtype=torch.int64)


if library_loaded():
    for _name, _fake in (
        ("sample", _fake_sample),
        ("log_counts", _fake_log_count),
        ("build_alias_table", _fake_table),
    ):
        torch.library.register_fake(f"sampled_softmax::{_name}", _fake)
