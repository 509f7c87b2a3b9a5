"""Row-sparse gradients under torch.compile: the sweep with results of a size known beforehand.

How many distinct rows a step touches is known only once it has run, and a size that depends on data
breaks a graph. Here the S samples and B targets give S + B rows always; those left over repeat the
last row with a gradient of zero, so that the sparse gradient is right but not coalesced.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .._build import operator_name
from ..losses.rows import compute_dtype
from .library import operators


@torch.library.custom_op(operator_name("loss_and_padded_grads"), mutates_args=())
def loss_and_padded_grads(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ids: Tensor,
    log_expected_count: Tensor | None,
    target_log_expected_count: Tensor | None,
    inv_temperature: float,
    remove_accidental_hits: bool,
    ignore_index: int,
    row_scale: Tensor | None,
    mean: bool,
    products: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`loss_and_grads` with sparse_grad=True, its rows filled up to S + B."""
    total, rows, grad_input, grad_weight, grad_bias, grad_rows = operators.loss_and_grads(
        input,
        weight,
        bias,
        target,
        ids,
        log_expected_count,
        target_log_expected_count,
        inv_temperature,
        remove_accidental_hits,
        ignore_index,
        row_scale,
        mean,
        True,
        products,
    )
    missing = ids.shape[0] + target.shape[0] - grad_rows.shape[1]
    last = grad_rows[:, -1:].expand(1, missing)
    if grad_rows.numel() == 0:
        last = grad_rows.new_zeros(1, missing)
    grad_weight = F.pad(grad_weight, (0, 0, 0, missing))
    if bias is not None:
        grad_bias = F.pad(grad_bias, (0, missing))
    grad_rows = torch.cat((grad_rows, last), dim=1)
    return total, rows, grad_input, grad_weight, grad_bias, grad_rows


def empty_results(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    num_rows: int | torch.SymInt,
    grad_size: int | torch.SymInt,
) -> tuple[Tensor, ...]:
    """The results of a sweep for a tracer: total, rows [4, B], grad_input, grad_weight
    [grad_size, D], grad_bias [grad_size] or [0], grad_rows [1, num_rows]."""
    dtype = compute_dtype(input)
    return (
        input.new_empty((), dtype=dtype),
        input.new_empty(4, input.shape[0], dtype=dtype),
        torch.empty_like(input, memory_format=torch.contiguous_format),
        weight.new_empty(grad_size, weight.shape[1]),
        weight.new_empty(0) if bias is None else bias.new_empty(grad_size),
        target.new_empty(1, num_rows),
    )


@loss_and_padded_grads.register_fake
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ids: Tensor,
    *_: object,
) -> tuple[Tensor, ...]:
    num_rows = ids.shape[0] + target.shape[0]
    return empty_results(input, weight, bias, target, num_rows, num_rows)
