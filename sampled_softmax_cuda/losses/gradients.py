"""Row-sparse gradients: built without a copy, and still known to be coalesced in `.grad`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._parallel import in_process_group
from .._rules import host_rules


def sparse_rows(rows: Tensor, values: Tensor, parameter: Tensor, coalesced: bool = True) -> Tensor:
    """The gradient of `parameter` [C, ...]: `values` [N, ...] in its rows `rows` [1, N].

    Args:
        coalesced: rows are sorted and distinct.
    """
    # An alias of its own for each gradient: AccumulateGrad copies indices that others hold too.
    return torch.sparse_coo_tensor(
        rows.detach(), values, parameter.shape, is_coalesced=coalesced, check_invariants=False
    )


def mark_coalesced_when_done(parameters: Sequence[Tensor | None], rows: Tensor) -> None:
    """Let the `.grad` of `parameters` know that it is coalesced, once the backward pass is over.

    AccumulateGrad takes a sparse gradient over without a copy, but forgets that it is coalesced,
    and every optimizer would sort and add its rows again. The gradients are known by the address of
    their indices: holding on to `rows` itself would make AccumulateGrad copy. To be called in a
    backward pass that returns gradients with these rows.
    """
    address = rows.data_ptr()
    leaves = [p for p in parameters if p is not None and p.is_leaf]

    def mark() -> None:
        for leaf in leaves:
            grad = leaf.grad
            if grad is not None and grad.is_sparse and grad._indices().data_ptr() == address:
                grad._coalesced_(True)

    queue = torch.autograd.Variable._execution_engine.queue_callback
    # DDP queues its own callback, which waits for threads that write to `.grad`; ours comes after.
    queue(partial(queue, mark) if in_process_group() else mark)


def parameter_grads(
    wanted: Sequence[bool],
    weight: Tensor,
    bias: Tensor | None,
    grads: Sequence[Tensor],
    *,
    sparse_grad: bool,
    coalesced: bool,
) -> list[Tensor | None]:
    """Gradients of input, weight and bias, None for those that nobody asked for.

    Args:
        wanted: whether each of the three is asked for.
        grads: of input, of weight and bias over all classes or, with sparse_grad, in the classes
            that the last tensor [1, N] names.
        coalesced: these are sorted and distinct.
    """
    grad_input, grad_weight, grad_bias, rows = grads
    result: list[Tensor | None] = [
        grad_input if wanted[0] else None,
        grad_weight if wanted[1] else None,
        grad_bias if wanted[2] and bias is not None else None,
    ]
    if sparse_grad:
        if wanted[1]:
            result[1] = sparse_rows(rows, grad_weight, weight, coalesced)
        if wanted[2] and bias is not None:
            result[2] = sparse_rows(rows, grad_bias, bias, coalesced)
        if coalesced:
            mark_coalesced_when_done((weight, bias), rows)
    return result


def as_parameters(
    grads: Sequence[Tensor],
    input_dtype: torch.dtype,
    weight: Tensor,
    bias: Tensor | None,
    sparse_grad: bool,
) -> list[Tensor]:
    """Gradients in the parameters' dtypes, and over all classes unless they are to be sparse.

    `grads` are in the dtype of the sums: of the input, of the weight and the bias in the classes
    [1, N], and these classes.
    """
    grad_input, grad_weight, grad_bias, classes = grads
    result = [grad_input.to(input_dtype)]
    for grad, parameter in ((grad_weight, weight), (grad_bias, bias)):
        cast = grad if parameter is None else grad.to(parameter.dtype)
        if parameter is not None and not sparse_grad and len(cast) < len(parameter):
            cast = cast.new_zeros(parameter.shape).index_copy_(0, classes[0], cast)
        result.append(cast)
    return [*result, classes]


class _Fork(torch.autograd.Function):
    """The autograd of `fork`."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, count: int) -> tuple[Tensor, ...]:
        ctx.table = table
        ctx.set_materialize_grads(False)
        return tuple(table.detach() for _ in range(count))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, None]:
        parts = [grad for grad in grads if grad is not None]
        if len(parts) < 2:
            return (parts[0] if parts else None), None
        table = ctx.table
        rows = torch.cat([part._indices() for part in parts], dim=1)
        values = torch.cat([part._values() for part in parts])
        if not host_rules(table):
            return sparse_rows(rows, values, table, coalesced=False), None
        distinct, place = torch.unique(rows[0], return_inverse=True)
        wide = torch.promote_types(values.dtype, torch.float32)
        sums = torch.zeros(distinct.shape[0], *values.shape[1:], dtype=wide)
        sums.index_add_(0, place, values.to(wide))
        mark_coalesced_when_done((table,), distinct)
        return sparse_rows(distinct[None], sums.to(values.dtype), table), None


def fork(table: Tensor, count: int) -> tuple[Tensor, ...]:
    """`table` [C, ...] for `count` uses with row-sparse gradients, which are added up here.

    autograd's own sum of sparse tensors takes no float16 on the CPU, and rounds every addend of a
    16-bit one.
    """
    return _Fork.apply(table, count)  # type: ignore[no-untyped-call, no-any-return]


class _AllRows(torch.autograd.Function):
    """The autograd of `with_sparse_grad`."""

    @staticmethod
    def forward(ctx: Any, table: Tensor) -> Tensor:
        return table.view_as(table)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        (grad,) = grads
        return sparse_rows(torch.arange(len(grad), device=grad.device)[None], grad, grad)


def with_sparse_grad(table: Tensor) -> Tensor:
    """`table` [C, ...] for a use with a dense gradient, handed on as a sparse one of all C rows.

    For those who have been told that the gradient is sparse.
    """
    return _AllRows.apply(table)  # type: ignore[no-untyped-call, no-any-return]
