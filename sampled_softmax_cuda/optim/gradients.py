"""Gradients as a row update takes them, and the checks that come before any row is written."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import FLOAT_DTYPES
from .._parallel import is_dtensor
from .._rules import may_look
from ..ops.optim import gradient_faults


class RowGradient(NamedTuple):
    """values [N, ...] of the rows ids [N], in rising order, each at order[n]; see `RowUpdate`."""

    values: Tensor
    ids: Tensor | None
    order: Tensor | None


def check_parameter(fn: str, name: object, p: Tensor) -> None:
    """TypeError or ValueError for a parameter that can't be updated."""
    if is_dtensor(p):
        raise TypeError(
            f"{fn}: {name} must be a plain tensor, got a DTensor: give the parameters of"
            " fully_shard to an optimizer of torch.optim, and those of heads and tables that are"
            " no DTensors to this one"
        )
    if p.layout != torch.strided:
        raise ValueError(f"{fn}: {name} must be a dense parameter, got layout {p.layout}")
    if p.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"{fn}: {name} must be float32, bfloat16, float16 or float64, got {p.dtype}"
        )


def _check_layout(fn: str, name: object, p: Tensor, grad: Tensor) -> None:
    if grad.shape != p.shape:
        raise ValueError(
            f"{fn}: the gradient of {name} must be {list(p.shape)} like it, got"
            f" {list(grad.shape)}: the parameter has changed its size since the backward pass"
        )
    if grad.dtype != p.dtype or grad.device != p.device:
        raise ValueError(
            f"{fn}: the gradient of {name} must be {p.dtype} on {p.device} like it, got"
            f" {grad.dtype} on {grad.device}"
        )
    if grad.layout not in (torch.strided, torch.sparse_coo):
        raise ValueError(
            f"{fn}: the gradient of {name} must be dense or sparse_coo, got {grad.layout}: pass"
            " grad.to_sparse(1), whose rows are its first dimension"
        )
    if grad.layout == torch.sparse_coo and grad.sparse_dim() != 1:
        raise ValueError(
            f"{fn}: the gradient of {name} must be sparse in its first dimension alone, got"
            f" sparse_dim={grad.sparse_dim()}: pass grad.to_dense().to_sparse(1)"
        )


def row_gradient(
    fn: str, name: object, p: Tensor, grad: Tensor, error_if_nonfinite: bool
) -> RowGradient:
    """The gradient in the form of a row update.

    Raises:
        ValueError: a shape, dtype, device or layout that doesn't fit p; on the CPU also ids that
            are no rows and, with error_if_nonfinite, inf and NaN.
    """
    _check_layout(fn, name, p, grad)
    ids = order = None
    if grad.layout == torch.strided:
        values = grad.contiguous() if grad.dim() > 0 else grad.reshape(1)
    else:
        values = grad._values().contiguous()
        ids = grad._indices()[0]
        if not grad.is_coalesced():
            ids, order = torch.sort(ids, stable=True)
        ids = ids.contiguous()
    if may_look(values):
        rows = p.shape[0] if p.dim() > 0 else 1
        bad_id, nonfinite = gradient_faults(values, ids, rows, error_if_nonfinite)
        if ids is not None and bad_id >= 0:
            raise ValueError(
                f"{fn}: the gradient of {name} has the row {int(ids[bad_id])}, which is out of"
                f" range: expected [0, C={rows})"
            )
        if nonfinite >= 0:
            raise ValueError(_nonfinite_message(fn, name, grad, nonfinite))
    return RowGradient(values, ids, order)


def _nonfinite_message(fn: str, name: object, grad: Tensor, at: int) -> str:
    values, row = grad, at
    if grad.layout == torch.sparse_coo:
        values, row = grad._values(), int(grad._indices()[0, at])
    bad = values[at] if values.dim() > 0 else values
    bad = bad[~bad.isfinite()].reshape(-1)[0]
    return (
        f"{fn}: the gradient of {name} has {float(bad)} in row {row}; nothing was changed. Look for"
        " its cause (a learning rate, the loss of a row, float16 without a GradScaler), skip the"
        " step, or pass error_if_nonfinite=False"
    )
