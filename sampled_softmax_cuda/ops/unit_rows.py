"""Rows of the class matrix divided by their norms, for losses of cosines, by the CPU's kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._build import operator_name
from .._rules import host_rules
from ..losses import gather
from ..losses.gradients import mark_coalesced_when_done, sparse_rows
from ..losses.rows import compute_dtype
from .autograd import refuse_double_backward
from .dispatch import kernels_take
from .library import library_loaded, operators


class _UnitRows(torch.autograd.Function):
    """The autograd of `unit_rows`."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, classes: Tensor | None, sparse: bool) -> Tensor:
        rows = torch.arange(table.shape[0]) if classes is None else classes
        unit, norm = operators.unit_rows(table, rows)
        ctx.save_for_backward(table, classes, unit, norm)
        ctx.sparse = sparse
        return unit  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        refuse_double_backward()
        table, classes, unit, norm = ctx.saved_tensors
        rows = operators.unit_rows_grad(grads[0].contiguous(), unit, norm)
        rows = rows.to(table.dtype)
        if classes is None:
            return rows, None, None
        if not ctx.sparse:
            return rows.new_zeros(table.shape).index_copy_(0, classes, rows), None, None
        mark_coalesced_when_done((table,), classes)
        return sparse_rows(classes[None], rows, table), None, None


def unit_rows(table: Tensor, classes: Tensor | None, dtype: torch.dtype, sparse: bool) -> Tensor:
    """table[classes], or all of it, in `dtype`, each row divided by its norm; differentiable once.

    Args:
        table: [C, D].
        classes: [N] int64; sorted and distinct on the CPU.
        dtype: float64 for a float64 table, else float32.
        sparse: a row-sparse gradient.
    """
    eager = host_rules(table) and not torch.compiler.is_compiling()
    if not eager or not kernels_take("unit_rows", table, table, None):
        return gather.unit_rows(table, classes, dtype, sparse)
    table = table if table.stride(1) == 1 else table.contiguous()
    return _UnitRows.apply(table, classes, sparse)  # type: ignore[no-untyped-call, no-any-return]


# --- what PyTorch needs to know of the operators --------------------------------------------------


def _fake_unit_rows(weight: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(weight)
    shape = (classes.shape[0], weight.shape[1])
    return weight.new_empty(shape, dtype=dtype), weight.new_empty(shape[:1], dtype=dtype)


def _fake_unit_rows_grad(grad: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(grad)


if library_loaded():
    torch.library.register_fake(operator_name("unit_rows"), _fake_unit_rows)
    torch.library.register_fake(operator_name("unit_rows_grad"), _fake_unit_rows_grad)
