"""The sampling operators as PyTorch sees them, and the choice between kernels and reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._load import has_native, library_loaded, may_look, native_for
from ..reference import sample as reference
from ..reference.sample import LogUniform, Method, Uniform, Weighted

Drawn = tuple[Tensor, Tensor, Tensor, Tensor]
"""ids [S], number of draws [], log n of the ids [S] and of the targets."""

Proposal = Uniform | LogUniform | Weighted

_KEY_LIMIT = 2**63 - 1  # all that torch.randint can do


def new_key(device: torch.device, generator: torch.Generator | None) -> Tensor:
    """(seed, offset) of a draw, int64 [2], by a built-in operator: a CUDA graph can hold it."""
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
    if not native_for(key.device, "sample_uniform"):
        return reference.sample(proposal, key, target, *rest)
    if isinstance(proposal, Uniform):
        drawn = _ops().sample_uniform(key, target, proposal.num_classes, *rest)
    elif isinstance(proposal, LogUniform):
        drawn = _ops().sample_log_uniform(key, target, proposal.num_classes, *rest)
    else:
        try:
            drawn = _ops().sample_alias(key, target, *proposal, *rest)
        except RuntimeError:
            check_table(proposal.table)
            raise
    result: Drawn = drawn
    return result


def check_table(table: Tensor | None) -> None:
    """IndexError, after an error of the kernels, if the alias table is the reason for it."""
    if table is not None and may_look(table):
        reference.check_aliases(table)


def log_counts(proposal: Proposal, ids: Tensor, num_samples: int, tries: Tensor | None) -> Tensor:
    """log n of any ids, float32 of their shape; log q with num_samples=1 and no tries."""
    if not native_for(ids.device, "log_count_uniform"):
        return reference.log_counts(proposal, ids, num_samples, tries)
    ids = ids.contiguous()
    if isinstance(proposal, Uniform):
        counts = _ops().log_count_uniform(ids, proposal.num_classes, num_samples, tries)
    elif isinstance(proposal, LogUniform):
        counts = _ops().log_count_log_uniform(ids, proposal.num_classes, num_samples, tries)
    else:
        counts = _ops().log_count_weighted(ids, proposal.probability_bits, num_samples, tries)
    result: Tensor = counts
    return result


def build_alias_table(probabilities: Tensor) -> Tensor:
    """The alias table int64 [C] of float64 probabilities [C], both on the CPU."""
    if not has_native():
        return reference.build_alias_table(probabilities)
    table: Tensor = _ops().build_alias_table(probabilities)
    return table


def _fake_sample(key: Tensor, target: Tensor, num_samples: int) -> Drawn:
    return (
        target.new_empty(num_samples),
        target.new_empty(()),
        target.new_empty(num_samples, dtype=torch.float32),
        torch.empty_like(target, dtype=torch.float32, memory_format=torch.contiguous_format),
    )


def _fake_sample_classes(
    key: Tensor,
    target: Tensor,
    num_classes: int,
    num_samples: int,
    method: int,
    tries: Tensor | None,
) -> Drawn:
    return _fake_sample(key, target, num_samples)


def _fake_sample_alias(
    key: Tensor,
    target: Tensor,
    table: Tensor,
    probability_bits: Tensor,
    num_samples: int,
    method: int,
    tries: Tensor | None,
) -> Drawn:
    return _fake_sample(key, target, num_samples)


def _fake_log_count(ids: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(ids, dtype=torch.float32, memory_format=torch.contiguous_format)


def _fake_table(probabilities: Tensor) -> Tensor:
    return torch.empty_like(probabilities, dtype=torch.int64)


if library_loaded():
    for _name, _fake in (
        ("sample_uniform", _fake_sample_classes),
        ("sample_log_uniform", _fake_sample_classes),
        ("sample_alias", _fake_sample_alias),
        ("log_count_uniform", _fake_log_count),
        ("log_count_log_uniform", _fake_log_count),
        ("log_count_weighted", _fake_log_count),
        ("build_alias_table", _fake_table),
    ):
        torch.library.register_fake(f"sampled_softmax::{_name}", _fake)
