"""Losses against negatives of single rows: the operators as PyTorch sees them, and their autograd.

The ids of `KeyedSamples` are drawn by the kernels, anew in the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._autograd import refuse_double_backward
from ._dispatch import as_kernels_take, kernels_take
from ._load import library_loaded, on_cpu
from ._sparse import mark_coalesced_when_done, sparse_rows
from .reference.loss import compute_dtype
from .reference.per_row import per_row_rows as reference_rows
from .samplers._rows import drawn_by_kernels
from .samplers.keyed import KeyedSamples
from .samplers.samples import Samples

_Value = Tensor | float | int | bool | None


def per_row_loss(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_logit: Tensor,
    hits: Tensor,
    counted: Tensor | None,
    samples: Samples | KeyedSamples,
    inv_temperature: float,
    softcap: float,
    remove_hits: bool,
    sigmoid: bool,
    sparse_grad: bool,
    corrected: bool = True,
) -> tuple[Tensor, Tensor]:
    """The negatives' part of a loss, and the largest logit of a negative that is no hit, both [B].

    Differentiable in input, weight, bias and target_logit. The arguments are those of
    `reference.per_row.per_row_rows`, checked already, but for

    Args:
        samples: ids and log expected counts [*, S] of B rows in all, or a key for them.
        corrected: whether log n is subtracted; a sample masked by +inf stays masked if not.
    """
    scalars = (inv_temperature, softcap, remove_hits, sigmoid)
    if isinstance(samples, KeyedSamples) and not drawn_by_kernels(
        samples.key, "keyed_rows", samples.method
    ):
        samples = samples.materialize()
    keyed = isinstance(samples, KeyedSamples)
    count = None if isinstance(samples, KeyedSamples) else samples.log_expected_count
    native = kernels_take("keyed_rows" if keyed else "per_row_rows", input, weight, bias, count)
    source: tuple[_Value, ...]
    if isinstance(samples, KeyedSamples) and native:
        drawn = (samples.num_samples, int(samples.method), samples.tries, samples.exclude)
        source = (samples.key, *samples.proposal, *drawn, corrected)
    else:
        given = samples.materialize() if isinstance(samples, KeyedSamples) else samples
        ids, count = _given(given, corrected)
        if not native:
            return reference_rows(
                input, weight, bias, target_logit, hits, counted, ids, count, *scalars, sparse_grad
            )
        source = (ids, count)
    input, weight, bias = as_kernels_take(input, weight, bias)
    rest: tuple[_Value, ...] = (hits, counted, *source, *scalars)
    parameters = (input, weight, bias, target_logit)
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in parameters)
    if not wanted:
        return _forward(keyed, (*parameters, *rest))
    apply = _in_graph if torch.compiler.is_compiling() else _apply
    result: tuple[Tensor, Tensor] = apply(parameters, rest, keyed, sparse_grad)
    return result


def _given(samples: Samples, corrected: bool) -> tuple[Tensor, Tensor | None]:
    """Ids and log expected counts [B, S]; those that only mask if not corrected."""
    ids, count, _ = samples
    ids = ids.reshape(math.prod(ids.shape[:-1]), ids.shape[-1])
    if count is None:
        return ids, None
    count = count.detach().reshape(ids.shape)
    return ids, count if corrected else torch.where(count == torch.inf, count, 0)


def _forward(keyed: bool, arguments: Sequence[_Value]) -> tuple[Tensor, Tensor]:
    ops = torch.ops.sampled_softmax
    result: tuple[Tensor, Tensor] = (ops.keyed_rows if keyed else ops.per_row_rows)(*arguments)
    return result


def _is_sigmoid(rest: Sequence[_Value]) -> bool:
    return bool(rest[-1])


def _backward(
    keyed: bool,
    parameters: tuple[Tensor, Tensor, Tensor | None, Tensor],
    rest: Sequence[_Value],
    loss: Tensor,
    grad: Tensor,
    sparse_grad: bool,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of input, weight, bias and target_logit; None for those that nobody asked for."""
    refuse_double_backward()
    input, weight, bias, _ = parameters
    row_scale = grad.to(compute_dtype(input)).contiguous()
    result: list[Tensor | None] = [None, None, None, None]
    if wanted[3] and not _is_sigmoid(rest):
        result[3] = torch.where(loss == 0, 0, row_scale * torch.expm1(-loss))
    if not any(wanted[:3]):
        return result
    ops = torch.ops.sampled_softmax
    operator = ops.keyed_grads if keyed else ops.per_row_grads
    grad_input, grad_weight, grad_bias, rows = operator(*parameters, *rest, row_scale, sparse_grad)
    coalesced = on_cpu(rows)
    if wanted[0]:
        result[0] = grad_input
    if wanted[1]:
        result[1] = grad_weight
        if sparse_grad:
            result[1] = sparse_rows(rows, grad_weight, weight, coalesced)
    if wanted[2] and bias is not None:
        result[2] = grad_bias
        if sparse_grad:
            result[2] = sparse_rows(rows, grad_bias, bias, coalesced)
    if sparse_grad and coalesced:
        mark_coalesced_when_done((weight, bias), rows)
    return result


def _save(
    ctx: Any, parameters: Sequence[Tensor | None], rest: Sequence[_Value], loss: Tensor
) -> None:
    """Keep tensors where autograd sees a change of them, the others beside."""
    tensors = [value if isinstance(value, Tensor) else None for value in rest]
    ctx.save_for_backward(*parameters, loss, *tensors)
    ctx.others = [None if isinstance(value, Tensor) else value for value in rest]


def _saved(ctx: Any) -> tuple[Any, list[_Value], Tensor]:
    input, weight, bias, target_logit, loss, *tensors = ctx.saved_tensors
    pairs = zip(tensors, ctx.others, strict=True)
    rest = [value if tensor is None else tensor for tensor, value in pairs]
    return (input, weight, bias, target_logit), rest, loss


class _PerRow(torch.autograd.Function):
    """The operators per_row_rows or keyed_rows; `rest` are their arguments from hits on."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target_logit: Tensor,
        rest: tuple[_Value, ...],
        keyed: bool,
        sparse_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        parameters = (input, weight, bias, target_logit)
        loss, peak = _forward(keyed, (*parameters, *rest))
        _save(ctx, parameters, rest, loss)
        ctx.keyed, ctx.sparse_grad = keyed, sparse_grad
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(peak)
        return loss, peak

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        if grads[0] is None:
            return (None,) * 7
        parameters, rest, loss = _saved(ctx)
        wanted = ctx.needs_input_grad[:4]
        result = _backward(ctx.keyed, parameters, rest, loss, grads[0], ctx.sparse_grad, wanted)
        return (*result, None, None, None)


def _apply(
    parameters: tuple[Tensor, Tensor, Tensor | None, Tensor],
    rest: tuple[_Value, ...],
    keyed: bool,
    sparse_grad: bool,
) -> Any:
    return _PerRow.apply(*parameters, rest, keyed, sparse_grad)  # type: ignore[no-untyped-call]


# One node of the graph, whose inside only AOTAutograd traces.
_in_graph = torch.compiler.allow_in_graph(_apply)  # type: ignore[no-untyped-call]


# --- what PyTorch needs to know of the operators --------------------------------------------------


def _fake_rows(input: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    row = input.new_empty(input.shape[0], dtype=compute_dtype(input))
    return row, torch.empty_like(row)


def _empty_grads(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sparse_grad: bool,
    num_samples: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    size: int | torch.SymInt = weight.shape[0]
    if sparse_grad and on_cpu(input):
        size = torch.library.get_ctx().new_dynamic_size()
    elif sparse_grad:
        size = min(weight.shape[0], input.shape[0] * num_samples)
    bias_like = weight if bias is None else bias
    return (
        torch.empty_like(input, memory_format=torch.contiguous_format),
        weight.new_empty(size, weight.shape[1]),
        bias_like.new_empty(0 if bias is None else size),
        input.new_empty(1, size if sparse_grad else 0, dtype=torch.int64),
    )


def _fake_per_row_grads(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_logit: Tensor,
    hits: Tensor,
    counted: Tensor | None,
    ids: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_grads(input, weight, bias, rest[-1], ids.shape[1])


def _fake_keyed_grads(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_logit: Tensor,
    hits: Tensor,
    counted: Tensor | None,
    key: Tensor,
    kind: int,
    num_classes: int,
    table: Tensor | None,
    probability_bits: Tensor | None,
    num_drawable: int,
    num_samples: int,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_grads(input, weight, bias, rest[-1], num_samples)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _save(ctx, inputs[:4], inputs[4:], output[0])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _op_backward(keyed: bool) -> Any:
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        rest_count = len(ctx.others)
        if grads[0] is None:
            return (None,) * (4 + rest_count)
        parameters, rest, loss = _saved(ctx)
        wanted = ctx.needs_input_grad[:4]
        result = _backward(keyed, parameters, rest, loss, grads[0], False, wanted)
        return (*result, *(None,) * rest_count)

    return backward


def _register() -> None:
    fakes: dict[str, Any] = {"per_row": _fake_per_row_grads, "keyed": _fake_keyed_grads}
    for name, fake_grads in fakes.items():
        rows, grads = f"sampled_softmax::{name}_rows", f"sampled_softmax::{name}_grads"
        torch.library.register_fake(rows, _fake_rows)
        torch.library.register_fake(grads, fake_grads)
        backward = _op_backward(name == "keyed")
        torch.library.register_autograd(rows, backward, setup_context=_setup)


if library_loaded():
    _register()
