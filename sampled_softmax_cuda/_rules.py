"""Whose rules hold for a tensor: the host's, or those of a device that runs beside it.

The CPU's kernels take mixed dtypes, refuse ids out of range and say which rows they touched, and
values of the CPU may be looked at; on a GPU that would mean to wait for it. Whatever depends on the
difference asks here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

# Operators whose kernels for the CPU stand in for a GPU's, if any do. torch.compile guards on it.
_device_operators: frozenset[str] | None = None


def host_rules(tensor: Tensor) -> bool:
    """True if the CPU's rules hold for this tensor, False if a GPU's do."""
    return tensor.is_cpu and _device_operators is None


def host_has(operator: str) -> bool:
    """Whether the CPU has a kernel for this operator, as far as rules decide."""
    return _device_operators is None or operator in _device_operators


def has_values(tensor: Tensor) -> bool:
    """False while a graph is traced, whose tensors have none to look at, and on the meta device."""
    if torch.compiler.is_compiling() or tensor.is_meta:
        return False
    return not isinstance(tensor, FakeTensor)


def may_look(tensor: Tensor) -> bool:
    """True if looking at values waits for nothing: those of the CPU, outside of a traced graph."""
    return has_values(tensor) and host_rules(tensor)


@contextmanager
def device_rules(operators: frozenset[str]) -> Iterator[None]:
    """Inside, a GPU's rules hold for tensors of the CPU, and `operators` have kernels for them.

    For kernels that obey those rules on the CPU, which the caller has registered there.
    """
    global _device_operators
    previous, _device_operators = _device_operators, operators
    try:
        yield
    finally:
        _device_operators = previous
