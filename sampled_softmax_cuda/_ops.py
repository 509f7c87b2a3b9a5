"""The compiled operators as PyTorch sees them: shapes for tracing, and gradients.

`loss_and_grads` gives the loss and the gradients of sum_i row_scale_i * loss_i in one sweep, so the
reduced loss (`total_loss`) computes its gradients in the forward pass and its backward pass only
multiplies by what comes from above. Losses per row (`rows_loss`) do the sweep in the backward pass,
when the factors of the rows are known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._load import library_loaded
from ._sparse import sparse_rows
from ._traced import loss_and_padded_grads
from .reference.exact import chunk_classes
from .reference.loss import compute_dtype

_NO_DOUBLE_BACKWARD = (
    "sampled_softmax_loss: create_graph=True (double backward) is not supported by the compiled"
    " kernels; use sampled_softmax_cuda.reference.sampled_softmax_loss, or SSC_BACKEND=reference"
)

# A sum over fewer elements than this is taken by one thread; a larger one is split by us, so that
# the result does not depend on the number of threads.
_SERIAL_SUM = 1 << 14

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]


def _ops() -> Any:
    return torch.ops.sampled_softmax


def _sum(rows: Tensor) -> Tensor:
    """The sum of [B] values in an order that the number of threads does not change."""
    if torch.compiler.is_compiling() or rows.numel() <= _SERIAL_SUM:
        return rows.sum()
    return torch.stack([part.sum() for part in torch.split(rows, _SERIAL_SUM)]).sum()


def _wanted(
    ctx: Any,
    weight: Tensor,
    bias: Tensor | None,
    grads: tuple[Tensor, Tensor, Tensor, Tensor],
) -> Grads:
    """Gradients in the layout of the parameters, None for those that nobody asked for."""
    grad_input, grad_weight, grad_bias, rows = grads
    want_input, want_weight, want_bias = ctx.needs_input_grad[:3]
    result: list[Tensor | None] = [grad_input if want_input else None, None, None]
    for slot, wanted, parameter, grad in (
        (1, want_weight, weight, grad_weight),
        (2, want_bias, bias, grad_bias),
    ):
        if not wanted or parameter is None:
            continue
        result[slot] = sparse_rows(rows, grad, parameter, ctx.traced) if ctx.sparse_grad else grad
    return result[0], result[1], result[2]


def _refuse_double_backward() -> None:
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(_NO_DOUBLE_BACKWARD)


def _sweep(arguments: tuple[Any, ...], row_scale: Tensor, sparse_grad: bool, traced: bool) -> Any:
    """The op loss_and_grads, or its variant whose results have a size that a graph can know."""
    if sparse_grad and traced:
        return loss_and_padded_grads(*arguments, row_scale)
    return _ops().loss_and_grads(*arguments, row_scale, sparse_grad)


class _RowsLoss(torch.autograd.Function):
    """Losses per row [B]; the sweep for the gradients waits for the factors of the rows."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        *arguments, sparse_grad, traced = args
        _save(ctx, tuple(arguments), sparse_grad, traced)
        loss, lse, target_logit, error = _ops().loss_rows(*arguments)
        ctx.mark_non_differentiable(lse, target_logit, error)
        return loss, lse, target_logit, error

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return (*_rows_backward(ctx, *grads), None, None)


class _TotalLoss(torch.autograd.Function):
    """sum_i row_scale_i * loss_i, and the details of the rows.

    The forward pass keeps the gradients and the first backward pass hands them out without a copy;
    a later one (retain_graph=True) computes them again. In a traced graph they are saved tensors.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        *arguments, sparse_grad, row_scale, dtype, traced = args
        loss, lse, target_logit, error, *grads = _sweep(
            tuple(arguments), row_scale, sparse_grad, traced
        )
        if traced:
            ctx.sparse_grad, ctx.traced = sparse_grad, traced
            ctx.save_for_backward(arguments[1], arguments[2], *grads)
        else:
            _save(ctx, tuple(arguments), sparse_grad, traced, row_scale)
            ctx.grads = grads
            ctx.parameters = arguments[1:3]
        ctx.mark_non_differentiable(lse, target_logit, error)
        ctx.set_materialize_grads(False)
        return _sum(loss * row_scale).to(dtype), lse, target_logit, error

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
        nothing = (None,) * 11
        factor = upstream[0]
        if factor is None:
            return (None, None, None, *nothing)
        if ctx.traced:
            weight, bias, *saved = ctx.saved_tensors
            scaled = [grad * factor.to(grad.dtype) for grad in saved[:3]]
            return (*_wanted(ctx, weight, bias, (*scaled, saved[3])), *nothing)
        _refuse_double_backward()
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            *tensors, row_scale = ctx.saved_tensors
            grads = _sweep((*tensors, *ctx.scalars), row_scale, ctx.sparse_grad, False)[4:]
        # Asking a CUDA scalar for its value would wait for the device.
        if factor.device.type != "cpu" or factor.item() != 1.0:
            for grad in grads[:3]:
                grad.mul_(factor)
        weight, bias = ctx.parameters
        return (*_wanted(ctx, weight, bias, tuple(grads)), *nothing)


def _save(
    ctx: Any,
    arguments: tuple[Any, ...],
    sparse_grad: bool,
    traced: bool,
    row_scale: Tensor | None = None,
) -> None:
    """Keep the ten arguments of loss_rows: seven tensors (or None) and three numbers."""
    tensors = arguments[:7] if row_scale is None else (*arguments[:7], row_scale)
    ctx.save_for_backward(*tensors)
    ctx.scalars = arguments[7:]
    ctx.sparse_grad, ctx.traced = sparse_grad, traced
    ctx.set_materialize_grads(False)


def _rows_backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    """Gradients for the ten arguments of loss_rows, from those of its first result, the losses."""
    nothing = (None,) * 7
    if grads[0] is None:
        return (None, None, None, *nothing)
    _refuse_double_backward()
    tensors = ctx.saved_tensors
    row_scale = grads[0].to(compute_dtype(tensors[0])).contiguous()
    result = _sweep((*tensors, *ctx.scalars), row_scale, ctx.sparse_grad, ctx.traced)
    return (*_wanted(ctx, tensors[1], tensors[2], result[4:]), *nothing)


@torch.compiler.allow_in_graph
def _in_graph(function: str, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Apply a Function as one node of the graph, whose inside only AOTAutograd traces.

    Dynamo, which would look inside, does not know sparse tensors; AOTAutograd does.
    """
    kind = _TotalLoss if function == "total" else _RowsLoss
    return kind.apply(*args, True)  # type: ignore[no-untyped-call, no-any-return]


def _apply(function: str, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if torch.compiler.is_compiling():
        return _in_graph(function, *args)  # type: ignore[no-any-return]
    kind = _TotalLoss if function == "total" else _RowsLoss
    return kind.apply(*args, False)  # type: ignore[no-untyped-call, no-any-return]


def rows_loss(
    arguments: tuple[Any, ...], sparse_grad: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, lse, target logit and error, each [B]; `arguments` are those of the op loss_rows."""
    return _apply("rows", *arguments, sparse_grad)


def total_loss(
    arguments: tuple[Any, ...], sparse_grad: bool, row_scale: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """sum_i row_scale_i * loss_i as a scalar of `dtype`, then lse, target logit and error [B].

    When a gradient is wanted, the whole sweep is done now; otherwise only the losses are computed.
    """
    if torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in arguments[:3]
    ):
        return _apply("total", *arguments, sparse_grad, row_scale, dtype)
    loss, lse, target_logit, error = _ops().loss_rows(*arguments)
    return _sum(loss * row_scale).to(dtype), lse, target_logit, error


def _setup_rows(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _save(ctx, inputs, False, False)
    ctx.mark_non_differentiable(*output[1:])


def _setup_exact(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    input, weight, bias, target, *ctx.scalars = inputs
    ctx.save_for_backward(input, weight, bias, target)
    ctx.sparse_grad = ctx.traced = False
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _exact_backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    """The exact loss is the sampled one with every class sampled once and hits removed."""
    if grads[0] is None:
        return (None,) * 6
    _refuse_double_backward()
    input, weight, bias, target = ctx.saved_tensors
    inv_temperature, ignore_index = ctx.scalars
    ids = torch.arange(weight.shape[0], device=weight.device)
    row_scale = grads[0].to(compute_dtype(input)).contiguous()
    arguments = (input, weight, bias, target, ids, None, None, inv_temperature, True, ignore_index)
    result = _ops().loss_and_grads(*arguments, row_scale, False)
    return (*_wanted(ctx, weight, bias, result[4:]), None, None, None)


def _setup_logits(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    input, weight, bias, ctx.begin, ctx.end, ctx.inv_temperature = inputs
    ctx.save_for_backward(input, weight, bias)


def _logits_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Plain matmuls, a chunk of classes at a time where the weight has to be converted."""
    input, weight, bias = ctx.saved_tensors
    want_input, want_weight, want_bias = ctx.needs_input_grad[:3]
    dtype, grad = grad.dtype, grad * ctx.inv_temperature
    h = input.to(dtype)
    grad_input = torch.zeros_like(h) if want_input else None
    grad_weight = torch.zeros_like(weight) if want_weight else None
    grad_bias = torch.zeros_like(bias) if want_bias else None
    step = chunk_classes(input.shape[0], weight.shape[0])
    for begin in range(ctx.begin, ctx.end, step):
        end = min(begin + step, ctx.end)
        part = grad[:, begin - ctx.begin : end - ctx.begin]
        if grad_input is not None:
            grad_input += part @ weight[begin:end].to(dtype)
        if grad_weight is not None:
            grad_weight[begin:end] = part.T @ h
        if grad_bias is not None:
            grad_bias[begin:end] = part.sum(dim=0)
    cast_input = None if grad_input is None else grad_input.to(input.dtype)
    return cast_input, grad_weight, grad_bias, None, None, None


def _fake_loss_rows(input: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def row() -> Tensor:
        return input.new_empty(input.shape[0], dtype=compute_dtype(input))

    return row(), row(), row(), row()


def _fake_loss_and_grads(*args: Any) -> tuple[Tensor, ...]:
    input, weight, bias, target = args[:4]
    sparse_grad = args[-1]
    num_rows: int | torch.SymInt = 0
    num_touched: int | torch.SymInt = weight.shape[0]
    if sparse_grad:
        num_rows = num_touched = torch.library.get_ctx().new_dynamic_size()
    bias_like = weight if bias is None else bias
    return (
        *_fake_loss_rows(input),
        torch.empty_like(input, memory_format=torch.contiguous_format),
        weight.new_empty(num_touched, weight.shape[1]),
        bias_like.new_empty(0 if bias is None else num_touched),
        target.new_empty(num_rows),
    )


def _fake_exact_loss_rows(input: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _fake_loss_rows(input)[:2]


def _fake_logits(
    input: Tensor, weight: Tensor, bias: Tensor | None, begin: int, end: int, _: float
) -> Tensor:
    return input.new_empty(input.shape[0], end - begin, dtype=compute_dtype(input))


def _register() -> None:
    fakes: dict[str, Callable[..., Any]] = {
        "loss_rows": _fake_loss_rows,
        "loss_and_grads": _fake_loss_and_grads,
        "exact_loss_rows": _fake_exact_loss_rows,
        "logits": _fake_logits,
    }
    for name, fake in fakes.items():
        torch.library.register_fake(f"sampled_softmax::{name}", fake)
    gradients: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "loss_rows": (_rows_backward, _setup_rows),
        "exact_loss_rows": (_exact_backward, _setup_exact),
        "logits": (_logits_backward, _setup_logits),
    }
    for name, (backward, setup_context) in gradients.items():
        torch.library.register_autograd(
            f"sampled_softmax::{name}", backward, setup_context=setup_context
        )


if library_loaded():
    _register()
