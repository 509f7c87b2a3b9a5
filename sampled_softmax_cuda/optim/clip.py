"""Clipping of dense and row-sparse gradients together."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .._arguments import as_float
from .._rules import may_look


def _with_gradients(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    return [p for p in parameters if p.grad is not None]


def check_norm(fn: str, max_norm: float, norm_type: float) -> tuple[float, float]:
    """Both as floats; TypeError or ValueError for what is no bound, or no norm."""
    max_norm = check_bound(fn, "max_norm", max_norm)
    norm_type = as_float(fn, "norm_type", norm_type)
    if not norm_type > 0:
        raise ValueError(f"{fn}: norm_type must be above 0, got {norm_type}")
    return max_norm, norm_type


def check_bound(fn: str, name: str, value: float) -> float:
    """A bound of gradients as a float; ValueError for one that would turn their signs."""
    value = as_float(fn, name, value)
    if not value >= 0:
        raise ValueError(f"{fn}: {name} must be at least 0, got {value}")
    return value


def merge_rows(grad: Tensor) -> Tensor:
    """A sparse gradient whose values have each row once; further ones of a row are zero.

    In place of `coalesce`, which on a GPU waits for the number of rows: here the number of values
    stays.
    """
    ids, order = torch.sort(grad._indices()[0], stable=True)
    starts = torch.ones_like(ids, dtype=torch.bool)
    starts[1:] = ids[1:] != ids[:-1]
    positions = torch.arange(len(ids), device=ids.device)
    first = torch.cummax(torch.where(starts, positions, 0), 0).values
    values = grad._values()
    merged = torch.zeros_like(values).index_add_(0, first, values[order])
    return torch.sparse_coo_tensor(ids[None], merged, grad.shape, check_invariants=False)


def gradient_values(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """The numbers of all gradients, each row once, to be changed in place; none are empty."""
    values = []
    for p in _with_gradients(parameters):
        assert p.grad is not None
        if p.grad.is_sparse:
            host = p.grad.is_coalesced() or may_look(p.grad)
            p.grad = p.grad.coalesce() if host else merge_rows(p.grad)
            values.append(p.grad._values())
        else:
            values.append(p.grad)
    return [value for value in values if value.numel() > 0]


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """torch.nn.utils.clip_grad_norm_ for dense and row-sparse gradients together.

    Args:
        parameters: one or several; those without a gradient are left out.
        max_norm: the largest norm of all gradients together, at least 0.
        norm_type: p of the p-norm, above 0, such as 2.0 (default), 1.0 or float("inf").
        error_if_nonfinite: RuntimeError if the norm is inf or NaN; waits for a GPU.
        foreach: as torch's.

    Returns:
        The norm before clipping, a scalar. Nothing waits for it.

    Raises:
        TypeError, ValueError: numbers that are not as above.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> table = torch.nn.Embedding(1000, 16, sparse=True)
        >>> table(torch.tensor([3, 7, 3])).sum().backward()
        >>> norm = ssc.optim.clip_grad_norm_(table.parameters(), 1.0)
        >>> round(float(norm), 3)  # 16 ones in row 7 and 16 twos in row 3
        8.944
        >>> round(float(table.weight.grad.coalesce().values().norm()), 3)
        1.0
    """
    max_norm, norm_type = check_norm("optim.clip_grad_norm_", max_norm, norm_type)
    values = gradient_values(parameters)
    norm = torch.nn.utils.get_total_norm(values, norm_type, error_if_nonfinite, foreach)
    coefficient = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for value in values:
        value.mul_(coefficient.to(value.device))
    return norm


@torch.no_grad()
def clip_grad_value_(
    parameters: Tensor | Iterable[Tensor], clip_value: float, foreach: bool | None = None
) -> None:
    """torch.nn.utils.clip_grad_value_ for dense and row-sparse gradients together.

    Args:
        parameters: one or several; those without a gradient are left out.
        clip_value: gradients are brought into [-clip_value, clip_value]; at least 0.
        foreach: for parity with torch; values are clamped one parameter after the other.

    Raises:
        TypeError, ValueError: a clip_value that is not as above.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> table = torch.nn.Embedding(1000, 16, sparse=True)
        >>> table(torch.tensor([3, 7, 3])).sum().backward()
        >>> ssc.optim.clip_grad_value_(table.parameters(), 0.5)
        >>> float(table.weight.grad.coalesce().values().max())
        0.5
    """
    clip_value = check_bound("optim.clip_grad_value_", "clip_value", clip_value)
    for value in gradient_values(parameters):
        value.clamp_(-clip_value, clip_value)
