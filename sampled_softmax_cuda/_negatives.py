"""The negatives' share of a loss: the operators as PyTorch sees them, and their autograd.

One operator for samples that all rows share (negative_rows), one for samples of each row's own
(per_row_rows), and one that draws those from a key, anew in the backward pass (keyed_rows); each
has a partner for the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._autograd import refuse_double_backward
from ._dispatch import as_kernels_take, kernels_take, products_in_tf32
from ._load import library_loaded, on_cpu
from ._sparse import mark_coalesced_when_done, sparse_rows
from .reference.functional import reference_negatives
from .reference.loss import compute_dtype
from .samplers._ops import check_table
from .samplers.keyed import KeyedSamples
from .samplers.samples import Samples

_Value = Tensor | float | int | bool | None

_KINDS = ("negative", "per_row", "keyed")
_TABLE = 9  # the place of the alias table among the arguments of keyed_rows and keyed_grads


def negatives_loss(
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
    """The negatives' loss, and the largest logit of a negative that is no hit, both [B].

    Differentiable in input, weight, bias and target_logit. The arguments are those of
    `reference.negatives.negative_rows`, checked already, but for

    Args:
        samples: ids and log expected counts, [S] or [B, S], or a key for those of B rows.
        corrected: whether log n is subtracted; a sample masked by +inf stays masked if not.
    """
    scalars = (inv_temperature, softcap, remove_hits, sigmoid)
    kind = "keyed"
    counts: tuple[Tensor | None, ...] = ()
    if isinstance(samples, Samples):
        kind = "negative" if samples.ids.dim() == 1 else "per_row"
        counts = (samples.log_expected_count,)
    if not kernels_take(f"{kind}_rows", input, weight, bias, *counts):
        parameters = (input, weight, bias, target_logit)
        return reference_negatives(
            *parameters, hits, counted, samples, *scalars, sparse_grad, corrected
        )
    source: tuple[_Value, ...]
    if isinstance(samples, KeyedSamples):
        drawn = (samples.num_samples, int(samples.method), samples.tries, samples.exclude)
        source = (samples.key, *samples.proposal, *drawn, corrected)
    else:
        source = given_samples(samples, corrected)
    input, weight, bias = as_kernels_take(input, weight, bias)
    rest: tuple[_Value, ...] = (hits, counted, *source, *scalars)
    parameters = (input, weight, bias, target_logit)
    tf32 = (products_in_tf32(weight),) if kind == "negative" else ()
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in parameters)
    if not wanted:
        return _forward(kind, (*parameters, *rest), tf32)  # type: ignore[no-any-return]
    apply = _in_graph if torch.compiler.is_compiling() else _apply
    return apply(parameters, rest, kind, sparse_grad, tf32)  # type: ignore[no-any-return]


def given_samples(samples: Samples, corrected: bool) -> tuple[Tensor, Tensor | None]:
    """Ids and log expected counts [S] or [B, S]; those that only mask if not corrected."""
    ids, count, _ = samples
    if ids.dim() > 2:
        ids = ids.reshape(math.prod(ids.shape[:-1]), ids.shape[-1])
    if count is None:
        return ids, None
    count = count.detach().reshape(ids.shape)
    if count.dtype not in (torch.float32, torch.float64):
        count = count.to(torch.float32)
    return ids, count if corrected else torch.where(count == torch.inf, count, 0)


def _call(kind: str, what: str, arguments: Sequence[_Value]) -> Any:
    """The operator `{kind}_{what}`."""
    try:
        return getattr(torch.ops.sampled_softmax, f"{kind}_{what}")(*arguments)
    except RuntimeError:
        # The kernels look at what they draw from a table; here it gets the message for users.
        if kind == "keyed":
            check_table(arguments[_TABLE])  # type: ignore[arg-type]
        raise


def _forward(kind: str, arguments: Sequence[_Value], tf32: tuple[bool, ...]) -> Any:
    return _call(kind, "rows", (*arguments, *tf32))


def _is_sigmoid(rest: Sequence[_Value]) -> bool:
    return bool(rest[-1])


def _backward(
    kind: str,
    parameters: tuple[Tensor, Tensor, Tensor | None, Tensor],
    rest: Sequence[_Value],
    loss: Tensor,
    grad: Tensor,
    sparse_grad: bool,
    tf32: tuple[bool, ...],
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
    arguments = (*parameters, *rest, row_scale, sparse_grad, *tf32)
    grad_input, grad_weight, grad_bias, rows = _call(kind, "grads", arguments)
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


class _Negatives(torch.autograd.Function):
    """The operators of a kind; `rest` are their arguments from hits on, but for tf32."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target_logit: Tensor,
        rest: tuple[_Value, ...],
        kind: str,
        sparse_grad: bool,
        tf32: tuple[bool, ...],
    ) -> tuple[Tensor, Tensor]:
        parameters = (input, weight, bias, target_logit)
        loss, peak = _forward(kind, (*parameters, *rest), tf32)
        _save(ctx, parameters, rest, loss)
        ctx.kind, ctx.sparse_grad, ctx.tf32 = kind, sparse_grad, tf32
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(peak)
        return loss, peak

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        if grads[0] is None:
            return (None,) * 8
        parameters, rest, loss = _saved(ctx)
        how = (ctx.sparse_grad, ctx.tf32, ctx.needs_input_grad[:4])
        return (*_backward(ctx.kind, parameters, rest, loss, grads[0], *how), *(None,) * 4)


def _apply(
    parameters: tuple[Tensor, Tensor, Tensor | None, Tensor],
    rest: tuple[_Value, ...],
    kind: str,
    sparse_grad: bool,
    tf32: tuple[bool, ...],
) -> Any:
    return _Negatives.apply(*parameters, rest, kind, sparse_grad, tf32)  # type: ignore[no-untyped-call]


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
    most_rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`most_rows`: of a sparse gradient, which on a GPU has as many."""
    size: int | torch.SymInt = weight.shape[0]
    if sparse_grad and on_cpu(input):
        size = torch.library.get_ctx().new_dynamic_size()
    elif sparse_grad:
        size = most_rows
    bias_like = weight if bias is None else bias
    return (
        torch.empty_like(input, memory_format=torch.contiguous_format),
        weight.new_empty(size, weight.shape[1]),
        bias_like.new_empty(0 if bias is None else size),
        input.new_empty(1, size if sparse_grad else 0, dtype=torch.int64),
    )


def _fake_grads(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_logit: Tensor,
    hits: Tensor,
    counted: Tensor | None,
    ids: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    most = ids.shape[0] if ids.dim() == 1 else min(weight.shape[0], ids.numel())
    return _empty_grads(input, weight, bias, rest[6], most)


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
    most = min(weight.shape[0], input.shape[0] * num_samples)
    return _empty_grads(input, weight, bias, rest[-1], most)


def _fake_loss_and_grads(
    input: Tensor, weight: Tensor, bias: Tensor | None, *_: Any
) -> tuple[Tensor, ...]:
    dtype = compute_dtype(input)
    size = torch.library.get_ctx().new_dynamic_size()
    return (
        *_fake_rows(input),
        input.new_empty(input.shape, dtype=dtype),
        input.new_empty(size, input.shape[1], dtype=dtype),
        input.new_empty(0 if bias is None else size, dtype=dtype),
        input.new_empty(1, size, dtype=torch.int64),
    )


def _setup(kind: str) -> Any:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        end = len(inputs) - (kind == "negative")
        _save(ctx, inputs[:4], inputs[4:end], output[0])
        ctx.tf32 = inputs[end:]
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    return setup


def _op_backward(kind: str) -> Any:
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        rest_count = len(ctx.others) + len(ctx.tf32)
        if grads[0] is None:
            return (None,) * (4 + rest_count)
        parameters, rest, loss = _saved(ctx)
        how = (False, ctx.tf32, ctx.needs_input_grad[:4])
        return (*_backward(kind, parameters, rest, loss, grads[0], *how), *(None,) * rest_count)

    return backward


def _register() -> None:
    torch.library.register_fake("sampled_softmax::negative_loss_and_grads", _fake_loss_and_grads)
    for kind in _KINDS:
        rows = f"sampled_softmax::{kind}_rows"
        torch.library.register_fake(rows, _fake_rows)
        fake_grads = _fake_keyed_grads if kind == "keyed" else _fake_grads
        torch.library.register_fake(f"sampled_softmax::{kind}_grads", fake_grads)
        torch.library.register_autograd(rows, _op_backward(kind), setup_context=_setup(kind))


if library_loaded():
    _register()
