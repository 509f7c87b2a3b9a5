"""Row-sparse gradients: built without a copy, and still known to be coalesced in `.grad`."""

from __future__ import annotations

import torch
from torch import Tensor


def sparse_rows(rows: Tensor, values: Tensor, parameter: Tensor, traced: bool = False) -> Tensor:
    """The gradient of `parameter` [C, ...]: `values` [N, ...] in its sorted, distinct `rows` [N].

    To be called in a backward pass. In a traced graph rows may repeat: see `_traced`.
    """
    grad = torch.sparse_coo_tensor(
        rows[None], values, parameter.shape, is_coalesced=not traced, check_invariants=False
    )
    if parameter.is_leaf and not traced:
        _mark_coalesced_when_done(parameter, rows.data_ptr())
    return grad


def _mark_coalesced_when_done(parameter: Tensor, address: int) -> None:
    """Let `parameter.grad` know that it is coalesced, once the backward pass is over.

    AccumulateGrad takes a sparse gradient over without a copy, but forgets that it is coalesced,
    and every optimizer would sort and add its rows again. The gradient is known by the address of
    its indices: holding on to the tensor itself would make AccumulateGrad copy.
    """

    def mark() -> None:
        grad = parameter.grad
        if grad is not None and grad.is_sparse and grad._indices().data_ptr() == address:
            grad._coalesced_(True)

    torch.autograd.Variable._execution_engine.queue_callback(mark)
