"""The sampling operators as PyTorch sees them, and the choice between kernels and reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._build import operator_name
from .._rules import may_look
from ..proposals import Method, Proposal
from ..reference import alias_table
from ..reference import sample as reference
from ..reference.distributions import distribution
from ..reference.draws import LEAST_LEFT, LEAST_LEFT_DISTINCT, Stream, draw_ids, excluded_mass
from ..reference.sample import Drawn
from .dispatch import native_serves
from .library import has_native, library_loaded, operators

__all__ = [
    "LEAST_LEFT",
    "LEAST_LEFT_DISTINCT",
    "Stream",
    "build_alias_table",
    "check_table",
    "distribution",
    "draw_ids",
    "excluded_mass",
    "log_counts",
    "sample",
]


def sample(
    proposal: Proposal,
    key: Tensor,
    target: Tensor,
    num_samples: int,
    method: Method,
    tries: Tensor | None,
    *of_rows: Tensor | bool | None,
) -> Drawn:
    """Draw ids, with the log expected counts of ids and targets; see `reference.sample.sample`.

    Args:
        of_rows: exclude, per_row and keep_ids, which draws shared by the batch have no need of.
    """
    if not native_serves("sample", key, torch.int64):
        return reference.sample(proposal, key, target, num_samples, method, tries, *of_rows)  # type: ignore[arg-type]
    try:
        return operators.sample(  # type: ignore[no-any-return]
            key, target, *proposal, num_samples, int(method), tries, *of_rows
        )
    except RuntimeError:
        check_table(proposal.table)
        raise


def check_table(table: Tensor | None) -> None:
    """IndexError, after an error of the kernels, if the alias table is the reason for it."""
    if table is not None and may_look(table):
        alias_table.check_aliases(table)


def log_counts(proposal: Proposal, ids: Tensor, num_samples: int, tries: Tensor | None) -> Tensor:
    """log n of any ids, float32 of their shape; log q with num_samples=1 and no tries."""
    if not native_serves("log_counts", ids, torch.int64):
        return reference.log_counts(proposal, ids, num_samples, tries)
    counts: Tensor = operators.log_counts(ids.contiguous(), *proposal, num_samples, tries)
    return counts


def build_alias_table(probabilities: Tensor) -> Tensor:
    """The alias table int64 [C] of float64 probabilities [C], both on the CPU."""
    if not has_native():
        return alias_table.build_alias_table(probabilities)
    table: Tensor = operators.build_alias_table(probabilities)
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
        torch.library.register_fake(operator_name(_name), _fake)
