"""A reduced loss of any options in one sweep, gradients included, on the CPU.

`losses.composed` makes such a loss of differentiable parts: logits of the targets, the negatives'
sum, and two row-sparse gradients of the weight that have to be added up. The reduction fixes what
the backward pass will ask for up to one factor, so here everything is done at once, as for the
plain softmax (`ops.loss`): the targets' terms and their slopes are [B, T] values in plain PyTorch;
the negatives' operator gives losses and gradients in one sweep; and an operator adds the targets'
rows to the same gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._build import operator_name
from .._rules import host_rules
from ..losses.composed import smoothing_shares
from ..losses.gradients import as_parameters, parameter_grads
from ..losses.problem import Problem
from ..losses.rows import compute_dtype, matmul, ordered_sum, row_scale
from ..losses.slopes import slope_by_logits, slopes_of_logits
from ..losses.targets import (
    Operands,
    Step,
    column,
    details_of_rows,
    label_smoothing,
    losses_of_rows,
    mean_of_targets,
    only,
    prepare,
    target_terms,
)
from ..samples import Samples
from .autograd import refuse_double_backward
from .dispatch import as_kernels_take, float32_products, kernels_take
from .library import library_loaded, operators
from .loss import gradients_now, scaled_grads
from .negatives import fake_rows, given_samples
from .unit_rows import unit_rows


def takes_total(p: Problem) -> bool:
    """Whether `total` serves this problem.

    Not per-row samples, which have no operator for it; not a z-loss, whose factor of a row depends
    on the sweep; not under torch.compile, where Functions have no graphs inside.
    """
    return (
        p.options.z_loss == 0.0
        and isinstance(p.samples, Samples)
        and p.samples.shared
        and host_rules(p.input)
        and not torch.compiler.is_compiling()
        and gradients_now(p)
        and kernels_take("negatives_loss_and_grads", p.input, p.weight, p.bias)
    )


def total(p: Problem) -> tuple[Tensor, Sequence[Tensor]]:
    """A route: the reduced loss of any options with its gradients in one sweep, and lse, target
    logit and error [B]."""
    operands, step = prepare(p, unit_rows)
    counted = step.counted
    if counted is None and p.row_weight is None:
        num_rows = operands.input.shape[0]
        factor = 1.0 / num_rows if p.reduction == "mean" else 1.0
        scale = p.input.new_full((num_rows,), factor, dtype=compute_dtype(p.input))
    else:
        scale = row_scale(step.rows_that_count, p.row_weight, p.reduction, compute_dtype(p.input))
    matrices = as_kernels_take(*operands)
    products = float32_products(*matrices[:2])
    result = _ComposedTotal.apply(*matrices, step, scale, products, p.want_details)  # type: ignore[no-untyped-call]
    return result[0], result[1:]


def _sweep(
    operands: Operands, s: Step, scale: Tensor, products: int, details: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """The rows' losses, with `details` lse, target logit and error too; and gradients of
    sum_i scale_i loss_i: of input [B, D], and of the weight and bias in the classes [1, N], in the
    dtype of the sums."""
    assert isinstance(s.samples, Samples)
    input, weight, bias = operands
    target = s.target if s.there is None else torch.where(s.there, s.target, -1)
    product = operators.target_products(input, weight, target)
    offset = None if bias is None else bias.detach()[s.target].to(product.dtype)
    terms = target_terms(product, offset, s)
    share = scale if terms.share == 1.0 else scale * terms.share
    sigmoid = s.options.objective._sigmoid
    loss, peak, *grads, classes = operators.negatives_loss_and_grads(
        input,
        weight,
        bias,
        terms.logit,
        s.hits,
        s.counted,
        *given_samples(s.samples, s.options.corrects_samples),
        1.0 / s.options.temperature,
        s.options.softcap or 0.0,
        s.options.remove_accidental_hits,
        sigmoid,
        share,
        target,
        products,
    )
    # loss is log(1 + exp(N - r)): exp(-loss) - 1 is its derivative by the targets' logsumexp r.
    of_logsumexp = None if sigmoid else only(s.counted, share * torch.expm1(-loss))
    shares = smoothing_shares(s, scale.dtype) if label_smoothing(s.options) > 0.0 else None
    of_z = slope_by_logits(terms, s, scale, of_logsumexp, None if shares is None else shares[2])
    by_product, by_bias = slopes_of_logits(product, offset, s)
    operators.add_target_grads(
        *grads,
        classes,
        input,
        weight,
        target,
        of_z * by_product,
        None if bias is None else of_z * by_bias,
    )
    smoothed = None
    if shares is not None:
        share, mean_log_count, any_counts = shares
        smoothed = _mean_logit(operands, s, scale, grads, classes, share) - mean_log_count
        if any_counts is not None:
            smoothed = torch.where(any_counts, smoothed, mean_of_targets(terms.z, s))
    rows = [losses_of_rows(terms, loss, s, smoothed)]
    if details:
        rows += details_of_rows(terms, loss, peak, s)
    return rows, [*grads, classes]


def _mean_logit(
    operands: Operands,
    s: Step,
    scale: Tensor,
    grads: list[Tensor],
    classes: Tensor,
    share: Tensor,
) -> Tensor:
    """The mean logit of all classes [B] by the samples' shares, for label smoothing, without a
    correction; its gradients are added to `grads`.

    It is linear: one more row of input, sum_i scale_i h_i, with every sample as its "target".
    """
    input, weight, bias = operands
    o, ids = s.options, s.samples.materialize().ids
    h = only(column(s.counted), input).to(scale.dtype)
    coefficient = share[None] * (-label_smoothing(o) / o.temperature)
    of_input = h.new_zeros(1, h.shape[1])
    operators.add_target_grads(
        of_input,
        *grads[1:],
        classes,
        matmul(scale, h)[None],
        weight,
        ids[None],
        coefficient,
        None if bias is None else coefficient * scale.sum(),
    )
    grads[0].addr_(scale, of_input[0])
    mean = matmul(h, of_input[0]) / -label_smoothing(o)
    if bias is None:
        return mean
    return mean + matmul(share, bias.detach()[ids].to(share.dtype)) / o.temperature


class _ComposedTotal(torch.autograd.Function):
    """The total of the losses and, with `details`, lse, target logit and error of the rows.

    The first backward pass hands out the gradients of the forward pass, a later one computes them
    again, as in `ops.loss`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        s: Step,
        scale: Tensor,
        products: int,
        details: bool,
    ) -> tuple[Tensor, ...]:
        rows, ctx.grads = _sweep(Operands(input, weight, bias), s, scale, products, details)
        # The step's samples are the caller's, and saved so that autograd sees a change of them.
        assert isinstance(s.samples, Samples)
        given = s.samples
        counts = (given.log_expected_count, given.target_log_expected_count)
        ctx.save_for_backward(input, weight, bias, scale, given.ids, *counts)
        ctx.step, ctx.input_dtype, ctx.products = s, input.dtype, products
        ctx.parameters = weight, bias
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*rows[1:])
        return ordered_sum(rows[0] * scale), *rows[1:]

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:
        factor = upstream[0]
        if factor is None:
            return (None,) * 7
        refuse_double_backward()
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            *operands, scale = ctx.saved_tensors[:4]
            grads = _sweep(Operands(*operands), ctx.step, scale, ctx.products, False)[1]
        grads = scaled_grads(grads, factor)
        sparse_grad = ctx.step.sparse_grad
        weight, bias = ctx.parameters
        grads = as_parameters(grads, ctx.input_dtype, weight, bias, sparse_grad)
        wanted = ctx.needs_input_grad[:3]
        grads = parameter_grads(
            wanted, weight, bias, grads, sparse_grad=sparse_grad, coalesced=True
        )
        return (*grads, None, None, None, None)


# --- what PyTorch needs to know of the operators --------------------------------------------------


def _fake_loss_and_grads(
    input: Tensor, weight: Tensor, bias: Tensor | None, *_: Any
) -> tuple[Tensor, ...]:
    dtype = compute_dtype(input)
    size = torch.library.get_ctx().new_dynamic_size()
    return (
        *fake_rows(input),
        input.new_empty(input.shape, dtype=dtype),
        input.new_empty(size, input.shape[1], dtype=dtype),
        input.new_empty(0 if bias is None else size, dtype=dtype),
        input.new_empty(1, size, dtype=torch.int64),
    )


def _fake_target_products(input: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return input.new_empty(target.shape, dtype=compute_dtype(input))


def _fake_add_target_grads(*_: Any) -> None:
    return None


if library_loaded():
    for _name, _fake in (
        ("negatives_loss_and_grads", _fake_loss_and_grads),
        ("target_products", _fake_target_products),
        ("add_target_grads", _fake_add_target_grads),
    ):
        torch.library.register_fake(operator_name(_name), _fake)
