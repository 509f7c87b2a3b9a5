"""Autograd of the sampled loss over the compiled kernels.

The op `loss_and_grads` gives sum_i row_scale_i * loss_i and its gradients in one sweep. So the
reduced loss (`total_loss`) has its gradients after the forward pass already, and its backward pass
only multiplies by what comes from above; losses per row (`rows_loss`) do the sweep in the backward
pass, when the factors of the rows are known. In both, the overhead beside the kernels is what small
steps feel: a tensor operation that takes 2 us by itself takes 10 after a sweep has filled the
caches. Hence few arguments, and no tensor operation that is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch._subclasses import FakeTensor

from ._load import on_cpu
from ._sparse import mark_coalesced_when_done, sparse_rows
from ._traced import loss_and_padded_grads
from ._transforms import NO_DOUBLE_BACKWARD, operator, transforming
from .reference.loss import compute_dtype

# A sum over fewer elements than this is taken by one thread; a larger one is split by us, so that
# the result does not depend on the number of threads.
_SERIAL_SUM = 1 << 14


class Arguments(NamedTuple):
    """The arguments of the op loss_rows, in its order; shapes as in csrc/ops/schema.cpp."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor
    ids: Tensor
    log_expected_count: Tensor | None
    target_log_expected_count: Tensor | None
    inv_temperature: float
    remove_accidental_hits: bool
    ignore_index: int


class Sweep(NamedTuple):
    """How gradients are wanted: as sparse tensors, inside a traced graph, with products in tf32,
    and in the dtype of the sums until the upstream gradient has been multiplied in."""

    sparse_grad: bool
    traced: bool
    tf32: bool
    wide: bool = False


def ordered_sum(rows: Tensor) -> Tensor:
    """The sum of [B] values in an order that the number of threads does not change."""
    if not on_cpu(rows) or torch.compiler.is_compiling() or rows.numel() <= _SERIAL_SUM:
        return rows.sum()
    return torch.stack([part.sum() for part in torch.split(rows, _SERIAL_SUM)]).sum()


def refuse_double_backward() -> None:
    """RuntimeError if this backward pass is to be differentiated itself."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(NO_DOUBLE_BACKWARD)


def wanted_grads(
    ctx: Any,
    weight: Tensor,
    bias: Tensor | None,
    grads: Sequence[Tensor],
    sweep: Sweep,
) -> list[Tensor | None]:
    """Gradients of input, weight and bias, None for those that nobody asked for.

    `grads` are the last four results of the sweep.
    """
    want_input, want_weight, want_bias = ctx.needs_input_grad[:3]
    grad_input, grad_weight, grad_bias, rows = grads
    result: list[Tensor | None] = [
        grad_input if want_input else None,
        grad_weight if want_weight else None,
        grad_bias if want_bias and bias is not None else None,
    ]
    if sweep.sparse_grad:
        # Elsewhere than on the CPU there are S + B rows, some of which repeat a class with zeros.
        coalesced = on_cpu(rows) and not sweep.traced
        if want_weight:
            result[1] = sparse_rows(rows, grad_weight, weight, coalesced)
        if want_bias and bias is not None:
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


def run_sweep(arguments: Any, sweep: Sweep) -> Any:
    """The op loss_and_grads, or its variant whose gradients wait for their last factor, or the one
    whose results have a size that a graph can know."""
    if sweep.wide:
        return torch.ops.sampled_softmax.loss_and_wide_grads(*arguments)
    if sweep.sparse_grad and sweep.traced and on_cpu(arguments[0]):
        return loss_and_padded_grads(*arguments)
    return torch.ops.sampled_softmax.loss_and_grads(*arguments, sweep.sparse_grad, sweep.tf32)


def rows_backward(
    ctx: Any, tensors: Any, scalars: Any, grad_loss: Tensor, sweep: Sweep
) -> list[Tensor | None]:
    """Gradients of input, weight and bias from that of the losses [B]."""
    refuse_double_backward()
    row_scale = grad_loss.to(compute_dtype(tensors[0])).contiguous()
    grads = run_sweep((*tensors, *scalars, row_scale, False), sweep)[2:]
    return wanted_grads(ctx, tensors[1], tensors[2], grads, sweep)


class _RowsLoss(torch.autograd.Function):
    """Losses per row [B]; the sweep for the gradients waits for the factors of the rows."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rest: tuple[Any, ...],
        sweep: Sweep,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.save_for_backward(input, weight, bias, *rest[:4])
        ctx.scalars, ctx.sweep = rest[4:], sweep
        ctx.set_materialize_grads(False)
        operator = torch.ops.sampled_softmax.loss_rows
        loss, *details = operator(input, weight, bias, *rest, sweep.tf32)
        ctx.mark_non_differentiable(*details)
        return loss, *details

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        if grads[0] is None:
            return None, None, None, None, None
        result = rows_backward(ctx, ctx.saved_tensors, ctx.scalars, grads[0], ctx.sweep)
        return (*result, None, None)


def _known_to_be_one(factor: Tensor) -> bool:
    """Whether a scalar is 1, as far as that can be seen without waiting for a device."""
    return on_cpu(factor) and not isinstance(factor, FakeTensor) and factor.item() == 1.0


def scaled_grads(grads: Sequence[Tensor], factor: Tensor) -> Sequence[Tensor]:
    """The gradients of a sweep, the last of which are rows, times what comes from above: in place,
    unless that is a batch (`is_grads_batched`)."""
    if transforming() or is_legacy_batchedtensor(factor):
        return [*(grad * factor.to(grad.dtype) for grad in grads[:-1]), grads[-1]]
    if not _known_to_be_one(factor):
        for grad in grads[:-1]:
            grad.mul_(factor)
    return grads


class _TotalLoss(torch.autograd.Function):
    """The op loss_and_grads: the total of the losses and, if wanted, the details of the rows.

    The forward pass keeps the gradients and the first backward pass hands them out without a copy;
    a later one (retain_graph=True) computes them again. In a traced graph they are saved tensors.
    `rest` are the op's arguments from the target on, without sparse_grad.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rest: tuple[Any, ...],
        details: bool,
        sweep: Sweep,
    ) -> Tensor | tuple[Tensor, Tensor]:
        total, rows, *grads = run_sweep((input, weight, bias, *rest), sweep)
        ctx.sweep = sweep
        if sweep.traced:
            ctx.save_for_backward(weight, bias, *grads)
        else:
            ctx.save_for_backward(input, weight, bias, *rest[:4], rest[7])
            ctx.scalars, ctx.mean = rest[4:7], rest[8]
            ctx.parameters, ctx.input_dtype = (weight, bias), input.dtype
            ctx.grads = grads
        if not details:
            return total  # type: ignore[no-any-return]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(rows)
        return total, rows

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:
        factor = upstream[0]
        if factor is None:
            return (None,) * 6
        if ctx.sweep.traced:
            weight, bias, *grads, rows = ctx.saved_tensors
            scaled = [grad * factor.to(grad.dtype) for grad in grads]
            return (*wanted_grads(ctx, weight, bias, (*scaled, rows), ctx.sweep), None, None, None)
        refuse_double_backward()
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            *tensors, row_scale = ctx.saved_tensors
            arguments = (*tensors, *ctx.scalars, row_scale, ctx.mean)
            grads = run_sweep(arguments, ctx.sweep)[2:]
        grads = scaled_grads(grads, factor)
        weight, bias = ctx.parameters
        if ctx.sweep.wide:
            grads = as_parameters(grads, ctx.input_dtype, weight, bias, ctx.sweep.sparse_grad)
        return (*wanted_grads(ctx, weight, bias, grads, ctx.sweep), None, None, None)


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def _in_graph(total: bool, *args: Any) -> Any:
    """Apply a Function as one node of the graph, whose inside only AOTAutograd traces.

    Dynamo, which would look inside, does not know sparse tensors; AOTAutograd does.
    """
    kind = _TotalLoss if total else _RowsLoss
    *rest, sparse_grad, tf32 = args
    return kind.apply(*rest, Sweep(sparse_grad, True, tf32))  # type: ignore[no-untyped-call]


def wants_gradient(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a backward pass may follow."""
    return torch.is_grad_enabled() and (
        input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )


def has_float16(*tensors: Tensor | None) -> bool:
    """Whether gradients would be rounded to float16: not before their last factor is known."""
    return any(tensor is not None and tensor.dtype == torch.float16 for tensor in tensors)


def rows_loss(
    arguments: Arguments, sparse_grad: bool, tf32: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, lse, target logit and error, each [B]; the loss is differentiable."""
    if transforming() or not wants_gradient(*arguments[:3]):
        rows = operator("loss_rows")(*arguments, tf32)
    elif torch.compiler.is_compiling():
        rows = _in_graph(False, *arguments[:3], arguments[3:], sparse_grad, tf32)
    else:
        sweep = Sweep(sparse_grad, False, tf32)
        rows = _RowsLoss.apply(*arguments[:3], arguments[3:], sweep)  # type: ignore[no-untyped-call]
    return rows  # type: ignore[no-any-return]


def total_loss(
    arguments: Arguments,
    row_scale: Tensor | None,
    mean: bool,
    details: bool,
    sparse_grad: bool,
    tf32: bool,
) -> tuple[Tensor, ...]:
    """sum_i row_scale_i * loss_i, a differentiable scalar; with `details`, then loss, lse, target
    logit and error [B], without a gradient. The whole sweep, gradients included, is done now.

    Without `row_scale`: the mean of the rows that count (0 if none does), or their sum.
    """
    rest = (*arguments[3:], row_scale, mean)
    if torch.compiler.is_compiling():
        result = _in_graph(True, *arguments[:3], rest, details, sparse_grad, tf32)
    else:
        wide = has_float16(*arguments[:3])
        sweep = Sweep(sparse_grad, False, tf32, wide)
        result = _TotalLoss.apply(*arguments[:3], rest, details, sweep)  # type: ignore[no-untyped-call]
    if not details:
        return (result,)
    total, rows = result
    return (total, *rows.unbind())
