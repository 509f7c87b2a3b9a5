"""Rows of the class matrix by their ids, with dense or row-sparse gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._rules import host_rules, may_look
from .._transforms import transformed, transforming, unwrapped
from .gradients import mark_coalesced_when_done, sparse_rows

RowsOf = Callable[[Tensor, Tensor, torch.dtype, bool], Tensor]
"""(table [C, D], classes [N], dtype, sparse gradient) -> [N, D]"""

UnitRows = Callable[[Tensor, Tensor | None, torch.dtype, bool], Tensor]
"""The same of all rows, too, each divided by its norm."""


class _GatherRows(torch.autograd.Function):
    """The autograd of `gather_rows`."""

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, ids: Tensor, dtype: torch.dtype, sparse: bool, traced: bool
    ) -> Tensor:
        ctx.save_for_backward(table, ids)
        ctx.sparse, ctx.traced = sparse, traced
        return table[ids].to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        table, ids = ctx.saved_tensors
        if not ctx.sparse:
            result = grad.new_zeros(table.shape).index_add(0, ids, grad).to(table.dtype)
        elif ctx.traced:
            result = sparse_rows(ids[None], grad.to(table.dtype), table, coalesced=False)
        else:
            rows, position = torch.unique(ids, return_inverse=True)
            values = grad.new_zeros((rows.numel(), *table.shape[1:])).index_add(0, position, grad)
            mark_coalesced_when_done((table,), rows)
            result = sparse_rows(rows[None], values.to(table.dtype), table)
        return result, None, None, None, None


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def _gather_in_graph(table: Tensor, ids: Tensor, dtype: torch.dtype) -> Any:
    """One node of a graph with a sparse gradient, which Dynamo, but not AOTAutograd, stumbles at.

    How many ids are distinct is nothing that a graph can know: the gradient has a row for each.
    """
    return _GatherRows.apply(table, ids, dtype, True, True)  # type: ignore[no-untyped-call]


def gather_rows(table: Tensor, ids: Tensor, dtype: torch.dtype, sparse_grad: bool) -> Tensor:
    """table[ids] in `dtype`, with a dense or a row-sparse gradient for the table [C, ...].

    Gradients of repeated rows are added in `dtype` and rounded once to the table's own; not so in
    a sparse gradient of a traced graph, which is not coalesced. Under transforms it is plain
    indexing, whose derivatives torch has all of; they are dense.
    """
    if transformed(table):
        return table.to(dtype)[ids]
    if sparse_grad and torch.compiler.is_compiling():
        return _gather_in_graph(table, ids, dtype)  # type: ignore[no-any-return]
    return _GatherRows.apply(table, ids, dtype, sparse_grad, False)  # type: ignore[no-untyped-call, no-any-return]


def followed_ids(ids: Tensor, num_classes: int) -> tuple[Tensor, Tensor | None]:
    """Class ids that index rows, and which of them stand in for an id outside [0, C).

    On the CPU such an id is an IndexError, and None is returned. Elsewhere, and in a traced graph,
    class 0 stands in.
    """
    seen = ids if torch.compiler.is_compiling() else unwrapped(ids)
    if not may_look(seen):
        bad = (ids < 0) | (ids >= num_classes)
        return ids.masked_fill(bad, 0), bad
    if seen.numel() > 0:
        low, high = (int(end) for end in seen.aminmax())
        if low < 0 or high >= num_classes:
            raise IndexError(
                f"class ids must be in [0, C={num_classes}), got {low if low < 0 else high}"
            )
    return ids, None


@dataclass(frozen=True)
class TouchedRows:
    """The classes that a step touches, renamed to rows of a smaller matrix."""

    weight: Tensor
    bias: Tensor | None
    ids: Tensor
    target: Tensor
    exclude: Tensor | None


def unit_rows(table: Tensor, classes: Tensor | None, dtype: torch.dtype, sparse: bool) -> Tensor:
    """table[classes], or all of it, in `dtype`, each row divided by its norm."""
    if classes is None:
        return F.normalize(table.to(dtype), dim=1)
    return F.normalize(gather_rows(table, classes, dtype, sparse), dim=1)


def _padded_unique(wanted: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The distinct ids of a list [n], filled up to n with the least, and where each of the list is
    among them; the list in rising order, and where each of that is among them: [n] all four."""
    ordered, order = wanted.sort(stable=True)
    starts = torch.ones_like(ordered)
    starts[1:] = (ordered[1:] != ordered[:-1]).to(ordered.dtype)
    number = starts.cumsum(0) - 1
    name = torch.empty_like(wanted).scatter_(0, order, number)
    # Repeats of a class write the same number to the same place.
    classes = ordered[:1].expand_as(ordered).clone().scatter_(0, name, wanted)
    return classes, name, ordered, number


def touched_rows(
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    target: Tensor,
    exclude: Tensor | None,
    dtype: torch.dtype | None,
    sparse: bool,
    rows_of: RowsOf,
) -> TouchedRows:
    """The rows of samples and targets by `rows_of`, in `dtype` or their own: not all C.

    Classes get the numbers 0, 1, ... in rising order. Where sizes may not depend on data there are
    as many rows as ids and targets, the last ones unused, but never more than C.
    """
    followed, ids_are_bad = followed_ids(ids, weight.shape[0])
    wanted = torch.cat((followed.reshape(-1), target.reshape(-1)))
    if host_rules(weight) and not (torch.compiler.is_compiling() or transforming()):
        # Sizes may be looked at here.
        classes, name = torch.unique(wanted, return_inverse=True)
        ordered, number = classes, None
    else:
        classes, name, ordered, number = _padded_unique(wanted)
        classes = classes[: weight.shape[0]]
    local = None
    if exclude is not None:
        place = torch.searchsorted(ordered, exclude.contiguous()).clamp(max=ordered.numel() - 1)
        named = place if number is None else number[place]
        local = torch.where(ordered[place] == exclude, named, -1)
    names = name[: ids.numel()].view_as(ids)
    return TouchedRows(
        rows_of(weight, classes, dtype or weight.dtype, sparse),
        None if bias is None else gather_rows(bias, classes, dtype or bias.dtype, sparse),
        names if ids_are_bad is None else names.masked_fill(ids_are_bad, -1),
        name[ids.numel() :].view_as(target),
        local,
    )
