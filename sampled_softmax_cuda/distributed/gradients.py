"""Gradients of a shard's rows: added up over those who used a row, and over replicas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..losses.gradients import mark_coalesced_when_done, sparse_rows
from ..losses.rows import compute_dtype
from .call import Call, Layout
from .drawn import Drawn, own_of
from .ranks import Ranks

CommonRows = Callable[[], Tensor]
"""Returns the sorted distinct rows that all replicas have gradients for."""


def add_rows(place: Tensor, values: Tensor, count: int) -> Tensor:
    """Sums [count, ...] of values [N, ...] by their places, in the order of N.

    In float32 (float64 for float64), rounded once.
    """
    wide = compute_dtype(values)
    sums = values.new_zeros((count, *values.shape[1:]), dtype=wide)
    # index_add_ on a GPU adds in any order.
    return sums.index_put_((place,), values.to(wide), accumulate=True).to(values.dtype)


class _Shard(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, table: Tensor, layout: Layout, sparse_grad: bool, common: CommonRows
    ) -> Tensor:
        ctx.table, ctx.layout, ctx.common = table, layout, common
        ctx.sparse_grad = sparse_grad
        ctx.set_materialize_grads(False)
        return table.view_as(table)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        table, layout = ctx.table, ctx.layout
        if grad is None and not ctx.sparse_grad:
            grad = torch.zeros_like(table)
        elif grad is None:
            nothing = torch.empty(0, dtype=torch.int64, device=table.device)
            grad = sparse_rows(nothing[None], table.new_empty((0, *table.shape[1:])), table)
        if not grad.is_sparse:
            total = layout.replicas.all_reduce(grad, "gradients of replicas")
            return total * layout.average, None, None, None
        if not grad.is_coalesced():
            rows, place = torch.unique(grad._indices()[0], return_inverse=True)
            values = add_rows(place, grad._values(), len(rows))
        else:
            rows, values = grad._indices()[0], grad._values()
        if layout.replicas.size > 1:
            rows, values = _over_replicas(rows, values, ctx.common(), layout.replicas)
        mark_coalesced_when_done((table,), rows)
        return sparse_rows(rows[None], values * layout.average, table), None, None, None


def shard_parameters(call: Call, drawn: Drawn) -> tuple[Tensor, Tensor | None]:
    """The parameters of a shard, whose gradients become the average over ranks and replicas.

    To be called after their rows were settled, which is known of the parameters alone.

    Args:
        drawn: the samples, on whose rows replicas agree without asking.
    """
    layout, sparse_grad = call.layout, call.asked.sparse_grad

    def common() -> Tensor:
        distinct: Tensor = torch.unique(own_of(drawn, layout.shard)[0])
        return distinct

    tables = (
        None if x is None else _Shard.apply(x, layout, sparse_grad, common)  # type: ignore[no-untyped-call]
        for x in (call.weight, call.bias)
    )
    return tuple(tables)  # type: ignore[return-value]


def _over_replicas(
    rows: Tensor, values: Tensor, common: Tensor, replicas: Ranks
) -> tuple[Tensor, Tensor]:
    """The sum over replicas: of the common rows by an all-reduce, of others as pairs of row and
    values."""
    place = torch.searchsorted(rows, common)
    place = place.clamp(max=max(len(rows) - 1, 0))
    shared = values.new_zeros((len(common), *values.shape[1:]))
    alone = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    if len(rows) > 0:
        there = rows[place] == common
        shared[there] = values[place[there]]
        alone[place[there]] = False
    wide = compute_dtype(values)
    shared = replicas.all_reduce(shared.to(wide), "gradients of samples' rows").to(values.dtype)
    count = torch.tensor([int(alone.sum())], device=rows.device)
    sizes = replicas.gather(count, "numbers of rows").flatten().tolist()
    others = replicas.gather_rows(rows[alone], sizes, "row numbers")
    given = replicas.gather_rows(values[alone], sizes, "gradients of targets' rows")
    union, to = torch.unique(torch.cat((common, others)), return_inverse=True)
    return union, add_rows(to, torch.cat((shared, given)), len(union))
