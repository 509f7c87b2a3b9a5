"""A reduced loss of any options in one sweep, gradients included, on the CPU.

`losses.composed` makes such a loss of differentiable parts: logits of the targets, the
negatives' sum, and two row-sparse gradients of the weight that have to be added up. The reduction
fixes what the backward pass will ask for up to one factor, so here everything is done at once, as
for the plain softmax (`ops.loss`): the targets' terms keep a small graph of their own, of [B, T]
values; the negatives' operator gives losses and gradients in one sweep; the derivatives by the
targets' products are taken; and an operator adds the targets' rows to the same gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._rules import host_rules
from ..losses.composed import smoothing_shares
from ..losses.gradients import as_parameters, parameter_grads
from ..losses.problem import Problem
from ..losses.rows import compute_dtype, matmul, ordered_sum, row_scale
from ..losses.targets import (
    Operands,
    Step,
    finish_rows,
    label_smoothing,
    mean_of_targets,
    prepare,
    target_terms,
)
from ..samples import Samples
from .autograd import refuse_double_backward
from .dispatch import as_kernels_take, kernels_take
from .library import library_loaded
from .loss import gradients_now, scaled_grads
from .negatives import fake_rows, given_samples
from .unit_rows import unit_rows

Rows = tuple[Tensor, Tensor, Tensor, Tensor]


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
    scale = row_scale(step.counted, p.row_weight, p.reduction, compute_dtype(p.input))
    result, _, *details = _ComposedTotal.apply(*as_kernels_take(*operands), step, scale)  # type: ignore[no-untyped-call]
    return result, details


def _sweep(operands: Operands, s: Step, scale: Tensor) -> tuple[Rows, list[Tensor]]:
    """The rows' results, and gradients of sum_i scale_i loss_i: of input [B, D], and of the weight
    and bias in the classes [1, N], in the dtype of the sums."""
    assert isinstance(s.samples, Samples)
    input, weight, bias = operands
    operators = torch.ops.sampled_softmax
    target = torch.where(s.there, s.target, -1)
    leaves = [operators.target_products(input, weight, target)]
    if bias is not None:
        leaves.append(bias.detach()[s.target].to(leaves[0].dtype))
    for leaf in leaves:
        leaf.requires_grad_()
    with torch.enable_grad():
        terms = target_terms(leaves[0], None if bias is None else leaves[1], s)
        outputs = [] if terms.own is None else [torch.where(s.counted, terms.own, 0)]
        if label_smoothing(s.options) > 0.0:
            mean = torch.where(s.counted, mean_of_targets(terms.z, s), 0)
            outputs.append(label_smoothing(s.options) * mean)
    upstream = [scale] * len(outputs)
    share = scale if terms.share == 1.0 else scale * terms.share
    sigmoid = s.options.objective.sigmoid
    loss, peak, *grads, classes = operators.negatives_loss_and_grads(
        input,
        weight,
        bias,
        terms.logit.detach(),
        s.hits,
        s.counted,
        *given_samples(s.samples, s.options.corrects_samples),
        1.0 / s.options.temperature,
        s.options.softcap or 0.0,
        s.options.remove_accidental_hits,
        sigmoid,
        share,
        target,
    )
    if not sigmoid:
        outputs.append(terms.logit)
        upstream.append(torch.where(loss == 0, 0, share * torch.expm1(-loss)))
    of_product, *of_bias = torch.autograd.grad(outputs, leaves, upstream)
    operators.add_target_grads(
        *grads,
        classes,
        input,
        weight,
        target,
        of_product.contiguous(),
        of_bias[0].contiguous() if of_bias else None,
    )
    smoothed = None
    if label_smoothing(s.options) > 0.0:
        smoothed = _mean_logit(operands, s, scale, grads, classes)
    return finish_rows(terms, loss, peak, s, smoothed), [*grads, classes]


def _mean_logit(
    operands: Operands, s: Step, scale: Tensor, grads: list[Tensor], classes: Tensor
) -> Tensor:
    """The mean logit of all classes [B], for label smoothing; its gradients are added to `grads`.

    It is linear: one more row of input, sum_i scale_i h_i, with every sample as its "target".
    """
    input, weight, bias = operands
    o, ids = s.options, s.samples.materialize().ids
    share, mean_log_count = smoothing_shares(s, scale.dtype)
    h = torch.where(s.counted[:, None], input, 0).to(scale.dtype)
    coefficient = share[None] * (-label_smoothing(o) / o.temperature)
    of_input = h.new_zeros(1, h.shape[1])
    torch.ops.sampled_softmax.add_target_grads(
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
    mean = matmul(h, of_input[0]) / -label_smoothing(o) - mean_log_count
    if bias is None:
        return mean
    return mean + matmul(share, bias.detach()[ids].to(share.dtype)) / o.temperature


class _ComposedTotal(torch.autograd.Function):
    """The total of the losses, and loss, lse, target logit and error of the rows.

    The first backward pass hands out the gradients of the forward pass, a later one computes them
    again, as in `ops.loss`.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, s: Step, scale: Tensor
    ) -> tuple[Tensor, ...]:
        rows, ctx.grads = _sweep(Operands(input, weight, bias), s, scale)
        # The step's samples are the caller's, and saved so that autograd sees a change of them.
        assert isinstance(s.samples, Samples)
        given = s.samples
        counts = (given.log_expected_count, given.target_log_expected_count)
        ctx.save_for_backward(input, weight, bias, scale, given.ids, *counts)
        ctx.step, ctx.input_dtype = s, input.dtype
        ctx.parameters = weight, bias
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*rows)
        return ordered_sum(rows[0] * scale), *rows

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:
        factor = upstream[0]
        if factor is None:
            return (None,) * 5
        refuse_double_backward()
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            *operands, scale = ctx.saved_tensors[:4]
            grads = _sweep(Operands(*operands), ctx.step, scale)[1]
        grads = scaled_grads(grads, factor)
        sparse_grad = ctx.step.sparse_grad
        weight, bias = ctx.parameters
        grads = as_parameters(grads, ctx.input_dtype, weight, bias, sparse_grad)
        wanted = ctx.needs_input_grad[:3]
        grads = parameter_grads(
            wanted, weight, bias, grads, sparse_grad=sparse_grad, coalesced=True
        )
        return (*grads, None, None)


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
        torch.library.register_fake(f"sampled_softmax::{_name}", _fake)
