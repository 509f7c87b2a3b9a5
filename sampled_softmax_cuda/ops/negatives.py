"""The negatives' share of a loss: the operators as PyTorch sees them, and their autograd.

`negatives_rows` takes samples that all rows share, samples of each row's own, or a key from which
it draws those, anew in the backward pass; `negatives_grads` are its gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._build import operator_name
from .._rules import host_rules
from .._transforms import transforming
from ..losses.composed import composed_rows
from ..losses.gradients import parameter_grads
from ..losses.problem import Problem
from ..losses.rows import compute_dtype
from ..losses.targets import prepare
from ..samples import KeyedSamples, Samples
from .autograd import operator, refuse_double_backward, register_autograd, wants_gradient
from .dispatch import as_kernels_take, float32_products, kernels_take
from .library import library_loaded, operators
from .sample import check_table
from .unit_rows import unit_rows

_Value = Tensor | float | int | bool | None


class Source(NamedTuple):
    """The samples as the operators take them: ids and log expected counts, or what to draw."""

    ids: Tensor | None
    log_expected_count: Tensor | None
    key: Tensor | None = None
    kind: int = 0
    num_classes: int = 0
    table: Tensor | None = None
    probability_bits: Tensor | None = None
    num_drawable: int = 0
    num_samples: int = 0
    method: int = 0
    tries: Tensor | None = None
    exclude: Tensor | None = None
    corrected: bool = True


_ROWS, _GRADS = "negatives_rows", "negatives_grads"
_TABLE = 4 + 2 + Source._fields.index("table")  # its place among the operators' arguments


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
    `reference.negatives.negative_rows`, but for

    Args:
        samples: ids and log expected counts, [S] or [B, S], or a key for those of B rows.
        corrected: whether log n is subtracted; a sample masked by +inf stays masked if not.
    """
    input, weight, bias = as_kernels_take(input, weight, bias)
    source = source_of(samples, corrected)
    rest = (hits, counted, *source, inv_temperature, softcap, remove_hits, sigmoid)
    parameters = (input, weight, bias, target_logit)
    products = float32_products(input, weight)
    if transforming() or not wants_gradient(*parameters):
        return _call(operator(_ROWS), (*parameters, *rest, products))  # type: ignore[no-any-return]
    apply = _in_graph if torch.compiler.is_compiling() else _apply
    return apply(parameters, rest, sparse_grad, products)  # type: ignore[no-any-return]


def negatives_served(p: Problem) -> bool:
    """Whether kernels compute the negatives' share of this problem."""
    count = p.samples.log_expected_count if isinstance(p.samples, Samples) else None
    unit_rows = p.options.cosine  # in float32, or all in float64
    return kernels_take(_ROWS, p.input, p.weight, p.bias, count, converted=unit_rows)


def composed(p: Problem) -> tuple[Tensor, Sequence[Tensor]]:
    """A route for any options: the negatives by kernels, all else in plain PyTorch."""
    operands, step = prepare(p, unit_rows)
    loss, *details = composed_rows(operands, step, negatives_loss)
    return p.reduce(loss, step.rows_that_count), details


def source_of(samples: Samples | KeyedSamples, corrected: bool) -> Source:
    if isinstance(samples, KeyedSamples):
        return Source._make((None, None, *samples._operator_arguments, corrected))
    return Source(*given_samples(samples, corrected))


def given_samples(samples: Samples, corrected: bool) -> tuple[Tensor, Tensor | None]:
    """Ids and log expected counts [S] or [B, S]; those that only mask if not corrected."""
    ids, count = samples.ids, samples.log_expected_count
    if ids.dim() > 2:
        ids = ids.reshape(math.prod(ids.shape[:-1]), ids.shape[-1])
    if count is None:
        return ids, None
    count = count.detach().reshape(ids.shape)
    if count.dtype not in (torch.float32, torch.float64):
        count = count.to(torch.float32)
    return ids, count if corrected else torch.where(count == torch.inf, count, 0)


def _call(operator: Callable[..., Any], arguments: Sequence[_Value]) -> Any:
    try:
        return operator(*arguments)
    except RuntimeError:
        # The kernels look at what they draw from a table; here it gets the message for users.
        check_table(arguments[_TABLE])  # type: ignore[arg-type]
        raise


def _is_sigmoid(rest: Sequence[_Value]) -> bool:
    return bool(rest[-1])


def _backward(
    parameters: tuple[Tensor, Tensor, Tensor | None, Tensor],
    rest: Sequence[_Value],
    loss: Tensor,
    grad: Tensor,
    sparse_grad: bool,
    products: int,
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
    arguments = (*parameters, *rest, row_scale, sparse_grad, products)
    grads = _call(operators.negatives_grads, arguments)
    coalesced = host_rules(grads[3])
    result[:3] = parameter_grads(
        wanted, weight, bias, grads, sparse_grad=sparse_grad, coalesced=coalesced
    )
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
    """The operators; `rest` are their arguments from hits on, but for products."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target_logit: Tensor,
        rest: tuple[_Value, ...],
        sparse_grad: bool,
        products: int,
    ) -> tuple[Tensor, Tensor]:
        parameters = (input, weight, bias, target_logit)
        loss, peak = _call(operators.negatives_rows, (*parameters, *rest, products))
        _save(ctx, parameters, rest, loss)
        ctx.sparse_grad, ctx.products = sparse_grad, products
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(peak)
        return loss, peak

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        if grads[0] is None:
            return (None,) * 7
        parameters, rest, loss = _saved(ctx)
        how = (ctx.sparse_grad, ctx.products, ctx.needs_input_grad[:4])
        return (*_backward(parameters, rest, loss, grads[0], *how), *(None,) * 3)


def _apply(
    parameters: tuple[Tensor, Tensor, Tensor | None, Tensor],
    rest: tuple[_Value, ...],
    sparse_grad: bool,
    products: int,
) -> Any:
    return _Negatives.apply(*parameters, rest, sparse_grad, products)  # type: ignore[no-untyped-call]


# One node of the graph, whose inside only AOTAutograd traces.
_in_graph = torch.compiler.allow_in_graph(_apply)  # type: ignore[no-untyped-call]


# --- what PyTorch needs to know of the operators --------------------------------------------------


def fake_rows(input: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
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
    if sparse_grad and host_rules(input):
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


def _fake_grads(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    input, weight, bias = arguments[:3]
    source, sparse_grad = Source(*arguments[6:19]), arguments[24]
    if source.ids is None:
        most = min(weight.shape[0], input.shape[0] * source.num_samples)
    elif source.ids.dim() == 1:
        most = source.ids.shape[0]
    else:
        most = min(weight.shape[0], source.ids.numel())
    return _empty_grads(input, weight, bias, sparse_grad, most)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *rest, ctx.products = inputs[4:]
    _save(ctx, inputs[:4], rest, output[0])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _op_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    none = (None,) * (len(ctx.others) + 1)
    if grads[0] is None:
        return (*(None,) * 4, *none)
    parameters, rest, loss = _saved(ctx)
    how = (False, ctx.products, ctx.needs_input_grad[:4])
    return (*_backward(parameters, rest, loss, grads[0], *how), *none)


if library_loaded():
    torch.library.register_fake(operator_name(_ROWS), fake_rows)
    torch.library.register_fake(operator_name(_GRADS), _fake_grads)
    register_autograd(_ROWS, _op_backward, _setup)
