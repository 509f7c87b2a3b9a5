"""The plain softmax by the compiled kernels: operators, their fakes, their autograd, two routes.

The op `loss_and_grads` gives sum_i row_scale_i * loss_i and its gradients in one sweep. So the
reduced loss (`fused`) has its gradients after the forward pass already, and its backward pass
only multiplies by the upstream gradient; losses per row (`rowwise`) do the sweep in the backward
pass, when the factors of the rows are known. In both, the overhead beside the kernels is felt by
small steps: a tensor operation that takes 2 us by itself takes 10 after a sweep has filled the
caches. Hence few arguments, and no tensor operation that is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch._subclasses import FakeTensor

from .._build import operator_name
from .._rules import host_rules
from .._transforms import transforming
from ..losses.gradients import as_parameters, parameter_grads
from ..losses.problem import Problem
from ..losses.rows import compute_dtype, count_of_samples, ordered_sum, reweighted, row_scale
from .autograd import operator, refuse_double_backward, register_autograd, wants_gradient
from .dispatch import as_kernels_take, float32_products
from .library import library_loaded, operators
from .padded import empty_results, loss_and_padded_grads


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
    """How gradients are wanted: as sparse tensors, inside a traced graph, with which products of
    float32 (`precision`), and in the dtype of the sums until the upstream gradient has been
    multiplied in."""

    sparse_grad: bool
    traced: bool
    products: int
    wide: bool = False


def run_sweep(arguments: Any, sweep: Sweep) -> Any:
    """The op loss_and_grads, or its variant whose gradients wait for their last factor, or the one
    whose results have a size that a graph can know."""
    if sweep.wide:
        return operators.loss_and_wide_grads(*arguments, sweep.products)
    if sweep.sparse_grad and sweep.traced and host_rules(arguments[0]):
        return loss_and_padded_grads(*arguments, sweep.products)
    return operators.loss_and_grads(*arguments, sweep.sparse_grad, sweep.products)


def _wanted_grads(
    ctx: Any, weight: Tensor, bias: Tensor | None, grads: Sequence[Tensor], sweep: Sweep
) -> list[Tensor | None]:
    """Elsewhere than on the CPU there are S + B rows, some of which repeat a class with zeros."""
    return parameter_grads(
        ctx.needs_input_grad[:3],
        weight,
        bias,
        grads,
        sparse_grad=sweep.sparse_grad,
        coalesced=host_rules(weight) and not sweep.traced,
    )


def rows_backward(
    ctx: Any, tensors: Any, scalars: Any, grad_loss: Tensor, sweep: Sweep
) -> list[Tensor | None]:
    """Gradients of input, weight and bias from that of the losses [B]."""
    refuse_double_backward()
    row_scale = grad_loss.to(compute_dtype(tensors[0])).contiguous()
    grads = run_sweep((*tensors, *scalars, row_scale, False), sweep)[2:]
    return _wanted_grads(ctx, tensors[1], tensors[2], grads, sweep)


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
        operator = operators.loss_rows
        loss, *details = operator(input, weight, bias, *rest, sweep.products)
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
    return host_rules(factor) and not isinstance(factor, FakeTensor) and factor.item() == 1.0


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
            return (*_wanted_grads(ctx, weight, bias, (*scaled, rows), ctx.sweep), None, None, None)
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
        return (*_wanted_grads(ctx, weight, bias, grads, ctx.sweep), None, None, None)


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def _in_graph(total: bool, *args: Any) -> Any:
    """Apply a Function as one node of the graph, whose inside only AOTAutograd traces.

    Dynamo, which would look inside, does not know sparse tensors; AOTAutograd does.
    """
    kind = _TotalLoss if total else _RowsLoss
    *rest, sparse_grad, products = args
    return kind.apply(*rest, Sweep(sparse_grad, True, products))  # type: ignore[no-untyped-call]


def has_float16(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether gradients would be rounded to float16: not before their last factor is known."""
    half = torch.float16
    return input.dtype is half or weight.dtype is half or (bias is not None and bias.dtype is half)


def rows_loss(
    arguments: Arguments, sparse_grad: bool, products: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, lse, target logit and error, each [B]; the loss is differentiable."""
    if transforming() or not wants_gradient(*arguments[:3]):
        rows = operator("loss_rows")(*arguments, products)
    elif torch.compiler.is_compiling():
        rows = _in_graph(False, *arguments[:3], arguments[3:], sparse_grad, products)
    else:
        sweep = Sweep(sparse_grad, False, products)
        rows = _RowsLoss.apply(*arguments[:3], arguments[3:], sweep)  # type: ignore[no-untyped-call]
    return rows  # type: ignore[no-any-return]


def total_loss(
    arguments: Arguments,
    row_scale: Tensor | None,
    mean: bool,
    details: bool,
    sparse_grad: bool,
    products: int,
) -> tuple[Tensor, ...]:
    """sum_i row_scale_i * loss_i, a differentiable scalar; with `details`, then loss, lse, target
    logit and error [B], without a gradient. The whole sweep, gradients included, is done now.

    Without `row_scale`: the mean of the rows that count (0 if none does), or their sum.
    """
    rest = (*arguments[3:], row_scale, mean)
    if torch.compiler.is_compiling():
        result = _in_graph(True, *arguments[:3], rest, details, sparse_grad, products)
    else:
        wide = has_float16(*arguments[:3])
        sweep = Sweep(sparse_grad, False, products, wide)
        result = _TotalLoss.apply(*arguments[:3], rest, details, sweep)  # type: ignore[no-untyped-call]
    if not details:
        return (result,)
    total, rows = result
    return (total, *rows.unbind())


# --- the routes -----------------------------------------------------------------------------------


def gradients_now(p: Problem) -> bool:
    """Whether the gradients are computed in the forward pass, before the upstream gradient.

    Not if nobody wants them or torch.func does, and not if the weights of the rows want a gradient
    too. In float16 they have to be scaled by the upstream gradient (a GradScaler's, say) before
    they are rounded, which the CPU's kernels leave to the backward pass, outside of traced graphs.
    """
    if p.reduction == "none" or not wants_gradient(p.input, p.weight, p.bias) or transforming():
        return False
    if p.row_weight is not None and p.row_weight.requires_grad:
        return False
    if has_float16(p.input, p.weight, p.bias):
        return host_rules(p.input) and not torch.compiler.is_compiling()
    return True


def fused(p: Problem) -> tuple[Tensor, Sequence[Tensor]]:
    """The reduced loss with its gradients in one sweep; if the problem wants details, also lse,
    target logit and error [B]."""
    arguments, products = _arguments(p), float32_products(p.input, p.weight)
    scale = None if p.row_weight is None else _row_scale(p, arguments)
    reweigh = p.options.reweighted
    mean = p.reduction == "mean"
    result, *rows = total_loss(
        arguments, scale, mean, p.want_details or reweigh, p.sparse_grad, products
    )
    if reweigh:
        if scale is None:
            scale = _row_scale(p, arguments)
        result = result + ordered_sum((reweighted(rows[0]) - rows[0]) * scale)
    return result, rows[1:]


def rowwise(p: Problem) -> tuple[Tensor, Sequence[Tensor]]:
    """The loss, reduced or of rows [B], and lse, target logit and error [B]; gradients later."""
    arguments = _arguments(p)
    loss, *details = rows_loss(arguments, p.sparse_grad, float32_products(p.input, p.weight))
    if p.options.reweighted:
        loss = reweighted(loss)
    return p.reduce(loss, arguments.target != arguments.ignore_index), details


def _arguments(p: Problem) -> Arguments:
    o, samples = p.options, p.samples.materialize()
    return Arguments(
        *as_kernels_take(p.input, p.weight, p.bias),
        p.target if p.target.dim() == 1 else p.target.reshape(-1),
        samples.ids,
        _log_count(count_of_samples(samples.log_expected_count, o.corrects_samples)),
        _log_count(samples.target_log_expected_count) if o.corrects_targets else None,
        1.0 / o.temperature,
        o.remove_accidental_hits,
        o.ignore_index,
    )


def _log_count(log_count: Tensor | None) -> Tensor | None:
    """Log expected counts as the kernels take them: flat, float32 or float64."""
    if log_count is None:
        return None
    if log_count.dim() != 1:
        log_count = log_count.reshape(-1)
    if log_count.dtype not in (torch.float32, torch.float64):
        log_count = log_count.to(torch.float32)
    return log_count.detach() if log_count.requires_grad else log_count


def _row_scale(p: Problem, arguments: Arguments) -> Tensor:
    """The factor of each row's loss."""
    counted = arguments.target != arguments.ignore_index
    return row_scale(counted, p.row_weight, p.reduction, compute_dtype(arguments.input))


# --- what PyTorch needs to know of the operators --------------------------------------------------


def fake_loss_rows(input: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
    if host_rules(input):
        touched = torch.library.get_ctx().new_dynamic_size()
    return empty_results(input, weight, bias, target, touched, touched)


def _fake_loss_and_wide_grads(*arguments: Any) -> tuple[Tensor, ...]:
    results = _fake_loss_and_grads(*arguments[:12], True)
    return tuple(
        x if x.dtype == torch.int64 else x.to(compute_dtype(arguments[0])) for x in results
    )


def dense_sweep(products: int) -> Sweep:
    return Sweep(sparse_grad=False, traced=False, products=products)


def _setup_rows(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:7])
    *ctx.scalars, ctx.products = inputs[7:]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _rows_backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    if grads[0] is None:
        return (None,) * 11
    result = rows_backward(ctx, ctx.saved_tensors, ctx.scalars, grads[0], dense_sweep(ctx.products))
    return (*result, *(None,) * 8)


if library_loaded():
    for _name, _fake in (
        ("loss_rows", fake_loss_rows),
        ("loss_and_grads", _fake_loss_and_grads),
        ("loss_and_wide_grads", _fake_loss_and_wide_grads),
    ):
        torch.library.register_fake(operator_name(_name), _fake)
    register_autograd("loss_rows", _rows_backward, _setup_rows)
