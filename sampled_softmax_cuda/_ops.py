"""The compiled operators as PyTorch sees them: shapes for tracing, and their own gradients.

The public loss goes through `_autograd`, which has less overhead; the gradients here are for those
who call `torch.ops.sampled_softmax` themselves, and for the exact loss and the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._autograd import Sweep, refuse_double_backward, rows_backward
from ._load import library_loaded, on_cpu
from ._traced import empty_results
from ._transforms import register_autograd
from .reference.exact import chunk_classes
from .reference.loss import compute_dtype


def _dense(tf32: bool) -> Sweep:
    return Sweep(sparse_grad=False, traced=False, tf32=tf32)


def _setup_rows(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:7])
    *ctx.scalars, ctx.tf32 = inputs[7:]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _rows_backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    if grads[0] is None:
        return (None,) * 11
    result = rows_backward(ctx, ctx.saved_tensors, ctx.scalars, grads[0], _dense(ctx.tf32))
    return (*result, *(None,) * 8)


def _setup_exact(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:4], output[1])
    ctx.scalars = inputs[4:]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _exact_backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    if grads[0] is None:
        return (None,) * 7
    input, weight, bias, target, _ = ctx.saved_tensors
    if not on_cpu(input):
        return (*_exact_backward_by_classes(ctx, grads[0]), *(None,) * 4)
    inv_temperature, ignore_index, tf32 = ctx.scalars
    # The exact loss is the sampled one with every class sampled once and hits removed.
    ids = torch.arange(weight.shape[0], device=weight.device)
    tensors = (input, weight, bias, target, ids, None, None)
    scalars = (inv_temperature, True, ignore_index)
    return (*rows_backward(ctx, tensors, scalars, grads[0], _dense(tf32)), *(None,) * 4)


def _exact_backward_by_classes(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    """A chunk of classes at a time, so that each row of the weight is read once.

    The matmuls are PyTorch's, in the dtype of the parameters: P - onehot is within [-1, 1], and the
    factors of the rows are brought to that size too, so that 16-bit types hold both.
    """
    refuse_double_backward()
    input, weight, bias, target, lse = ctx.saved_tensors
    inv_temperature, ignore_index, tf32 = ctx.scalars
    want_input, want_weight, want_bias = ctx.needs_input_grad[:3]
    counted = target != ignore_index
    k = torch.where(counted, grad, 0.0).to(lse.dtype) * inv_temperature
    unit = k.abs().amax().clamp_min(torch.finfo(k.dtype).tiny) if k.numel() else k.sum()
    h = torch.where(counted[:, None], input, 0)
    scaled = (h * (k / unit)[:, None]).to(input.dtype)
    grad_input = torch.zeros_like(input, dtype=lse.dtype) if want_input else None
    grad_weight = torch.zeros_like(weight) if want_weight else None
    grad_bias = torch.zeros_like(bias) if bias is not None and want_bias else None
    step = chunk_classes(input.shape[0], weight.shape[0])
    for begin in range(0, weight.shape[0], step):
        end = min(begin + step, weight.shape[0])
        z = torch.ops.sampled_softmax.logits(h, weight, bias, begin, end, inv_temperature, tf32)
        classes = torch.arange(begin, end, device=target.device)
        p = (z - lse[:, None]).exp_().sub_((target[:, None] == classes).to(z.dtype))
        p.masked_fill_(~counted[:, None], 0.0)
        rounded = p.to(weight.dtype)
        if grad_input is not None:
            grad_input += rounded @ weight[begin:end]
        if grad_weight is not None:
            grad_weight[begin:end] = (rounded.T @ scaled) * unit
        if grad_bias is not None:
            grad_bias[begin:end] = k @ p
    if grad_input is not None:
        grad_input = (grad_input * k[:, None]).to(input.dtype)
    return [grad_input, grad_weight, grad_bias]


def _setup_logits(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    input, weight, bias, ctx.begin, ctx.end, ctx.inv_temperature, _ = inputs
    ctx.save_for_backward(input, weight, bias)


def _logits_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Plain matmuls, a chunk of classes at a time because the weight may have to be converted."""
    refuse_double_backward()
    input, weight, bias = ctx.saved_tensors
    want_input, want_weight, want_bias = ctx.needs_input_grad[:3]
    dtype = compute_dtype(input)
    grad, h = grad.to(dtype) * ctx.inv_temperature, input.to(dtype)
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
    return cast_input, grad_weight, grad_bias, None, None, None, None


def _fake_loss_rows(input: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def row() -> Tensor:
        return input.new_empty(input.shape[0], dtype=compute_dtype(input))

    return row(), row(), row(), row()


def _fake_loss_and_grads(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ids: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    sparse_grad = rest[7]
    if not sparse_grad:
        return empty_results(input, weight, bias, target, 0, weight.shape[0])
    touched: int | torch.SymInt = ids.shape[0] + target.shape[0]
    if on_cpu(input):
        touched = torch.library.get_ctx().new_dynamic_size()
    return empty_results(input, weight, bias, target, touched, touched)


def _fake_loss_and_wide_grads(*arguments: Any) -> tuple[Tensor, ...]:
    results = _fake_loss_and_grads(*arguments, True)
    return tuple(
        x if x.dtype == torch.int64 else x.to(compute_dtype(arguments[0])) for x in results
    )


def _fake_exact_loss_rows(input: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _fake_loss_rows(input)[:2]


def _fake_logits(
    input: Tensor, weight: Tensor, bias: Tensor | None, begin: int, end: int, *_: Any
) -> Tensor:
    return input.new_empty(input.shape[0], end - begin, dtype=compute_dtype(input))


def _fake_target_products(input: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return input.new_empty(target.shape, dtype=compute_dtype(input))


def _fake_add_target_grads(*_: Any) -> None:
    return None


def _fake_unit_rows(weight: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(weight)
    shape = (classes.shape[0], weight.shape[1])
    return weight.new_empty(shape, dtype=dtype), weight.new_empty(shape[:1], dtype=dtype)


def _fake_unit_rows_grad(grad: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(grad)


def _register() -> None:
    fakes: dict[str, Callable[..., Any]] = {
        "loss_rows": _fake_loss_rows,
        "loss_and_grads": _fake_loss_and_grads,
        "loss_and_wide_grads": _fake_loss_and_wide_grads,
        "exact_loss_rows": _fake_exact_loss_rows,
        "logits": _fake_logits,
        "target_products": _fake_target_products,
        "add_target_grads": _fake_add_target_grads,
        "unit_rows": _fake_unit_rows,
        "unit_rows_grad": _fake_unit_rows_grad,
    }
    for name, fake in fakes.items():
        torch.library.register_fake(f"sampled_softmax::{name}", fake)
    gradients: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "loss_rows": (_rows_backward, _setup_rows),
        "exact_loss_rows": (_exact_backward, _setup_exact),
        "logits": (_logits_backward, _setup_logits),
    }
    for name, (backward, setup_context) in gradients.items():
        register_autograd(name, backward, setup_context)


if library_loaded():
    _register()
