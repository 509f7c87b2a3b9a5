"""Row-sparse gradients: built without a copy, and still known to be coalesced in `.grad`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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

    torch.autograd.Variable._execution_engine.queue_callback(mark)
