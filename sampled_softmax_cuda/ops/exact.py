"""The exact softmax by the compiled kernels, or by the reference: operators, fakes, autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._build import operator_name
from .._rules import host_rules
from ..losses.problem import Problem
from ..losses.rows import cap, chunk_classes, compute_dtype
from ..options import Options
from ..reference import exact as reference
from ..reference.problem import reference as by_reference
from ..samples import Samples
from .autograd import operator, refuse_double_backward, register_autograd
from .dispatch import as_kernels_take, float32_products, kernels_take
from .library import library_loaded, operators
from .loss import dense_sweep, fake_loss_rows, rows_backward
from .negatives import composed, negatives_served


def loss_rows(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    options: Options,
    padding_idx: int | None = None,
    exclude: Tensor | None = None,
    want_error: bool = False,
) -> tuple[Tensor, Sequence[Tensor]]:
    """The exact loss of each row [B], and its details: lse, with `want_error` also the target's
    logit and the error.

    Capped logits, excluded classes and a z-loss are served by the kernels of the negatives: with
    every class sampled once, the sampled loss is the exact one.

    Args:
        input: [B, D].
        weight: [C, D]. bias: [C] or None.
        target: [B] int64.
        options: temperature, ignore_index, softcap and z_loss count.
        padding_idx: a class that is in no normaliser.
        exclude: [B, E] int64, more such classes of each row; values below 0 are padding.
        want_error: whether the error is wanted.
    """
    o = options
    capped = o.softcap is not None or o.z_loss != 0.0
    if not (capped or want_error or exclude is not None):
        bias = _without_class(weight, bias, padding_idx)
        if kernels_take("exact_loss_rows", input, weight, bias):
            matrices = as_kernels_take(input, weight, bias)
            rest = (1.0 / o.temperature, o.ignore_index, float32_products(input, weight))
            loss, lse = operator("exact_loss_rows")(*matrices, target, *rest)
        else:
            scalars = (1.0 / o.temperature, o.ignore_index)
            loss, lse = reference.exact_loss_rows(input, weight, bias, target, *scalars)
        return loss, [lse]
    every = Samples(torch.arange(weight.shape[0], device=weight.device))
    if padding_idx is not None:
        every = every.without(padding_idx)
    p = Problem(input, weight, bias, target, every, exclude, None, o, "none", False)
    served = negatives_served(p)
    if served or want_error or exclude is not None or padding_idx is not None:
        return (composed if served else by_reference)(p)
    capped_at = o.softcap or 0.0
    scale = 1.0 / o.temperature
    loss, lse = reference.exact_loss_rows(
        input, weight, bias, target, scale, o.ignore_index, capped_at
    )
    if o.z_loss != 0.0:
        loss = loss + o.z_loss * lse.square()
    return loss, [lse.detach()]


def _without_class(weight: Tensor, bias: Tensor | None, idx: int | None) -> Tensor | None:
    """The bias [C] such that the class `idx` has no probability."""
    if idx is None:
        return bias
    if bias is None:
        bias = weight.new_zeros(weight.shape[0])
    place = torch.full((1,), idx, device=weight.device)
    return bias.index_fill(0, place, -torch.inf)


def chunk_logits(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    begin: int,
    end: int,
    temperature: float,
    softcap: float | None = None,
    padding_idx: int | None = None,
) -> Tensor:
    """Logits [B, end - begin] of h [B, D], in float32 (float64 for float64); -inf for padding."""
    scale = 1.0 / temperature
    if kernels_take("logits", h, weight, bias):
        matrices = as_kernels_take(h, weight, bias)
        z: Tensor = operator("logits")(*matrices, begin, end, scale, float32_products(h, weight))
        z = cap(z, softcap or 0.0)
    else:
        z = reference.logits(h, weight, bias, begin, end, scale, softcap or 0.0)
    if padding_idx is not None and begin <= padding_idx < end:
        place = torch.full((1,), padding_idx - begin, device=z.device)
        z = z.index_fill(1, place, -torch.inf)
    return z


# --- what PyTorch needs to know of the operators --------------------------------------------------


def _setup_exact(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:4], output[1])
    ctx.scalars = inputs[4:]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _exact_backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    if grads[0] is None:
        return (None,) * 7
    input, weight, bias, target, _ = ctx.saved_tensors
    if not host_rules(input):
        return (*_exact_backward_by_classes(ctx, grads[0]), *(None,) * 4)
    inv_temperature, ignore_index, products = ctx.scalars
    # The exact loss is the sampled one with every class sampled once and hits removed.
    ids = torch.arange(weight.shape[0], device=weight.device)
    tensors = (input, weight, bias, target, ids, None, None)
    scalars = (inv_temperature, True, ignore_index)
    return (*rows_backward(ctx, tensors, scalars, grads[0], dense_sweep(products)), *(None,) * 4)


def _exact_backward_by_classes(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    """A chunk of classes at a time, so that each row of the weight is read once.

    The matmuls are PyTorch's, in the dtype of the parameters: P - onehot is within [-1, 1], and the
    factors of the rows are brought to that size too, so that 16-bit types hold both.
    """
    refuse_double_backward()
    input, weight, bias, target, lse = ctx.saved_tensors
    inv_temperature, ignore_index, products = ctx.scalars
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
        z = operators.logits(h, weight, bias, begin, end, inv_temperature, products)
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


def _fake_exact_loss_rows(input: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return fake_loss_rows(input)[:2]


def _fake_logits(
    input: Tensor, weight: Tensor, bias: Tensor | None, begin: int, end: int, *_: Any
) -> Tensor:
    return input.new_empty(input.shape[0], end - begin, dtype=compute_dtype(input))


if library_loaded():
    torch.library.register_fake(operator_name("exact_loss_rows"), _fake_exact_loss_rows)
    torch.library.register_fake(operator_name("logits"), _fake_logits)
    register_autograd("exact_loss_rows", _exact_backward, _setup_exact)
    register_autograd("logits", _logits_backward, _setup_logits)
