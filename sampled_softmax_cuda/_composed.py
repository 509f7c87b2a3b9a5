"""A reduced loss of any options in one sweep, gradients included, on the CPU.

`reference.composed` makes such a loss of differentiable parts: logits of the targets, the
negatives' sum, and two row-sparse gradients of the weight that have to be added up. The reduction
fixes what the backward pass will ask for up to one factor, so here everything is done at once, as
for the plain softmax (`_autograd`): the targets' terms keep a small graph of their own, of [B, T]
values; the negatives' operator gives losses and gradients in one sweep; the derivatives by the
targets' products are taken; and an operator adds the targets' rows to the same gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._autograd import (
    Sweep,
    as_parameters,
    ordered_sum,
    refuse_double_backward,
    scaled_grads,
    wanted_grads,
)
from ._dispatch import as_kernels_take, kernels_take
from ._load import on_cpu
from ._negatives import given_samples
from .reference.composed import (
    Operands,
    Step,
    finish_rows,
    mean_of_targets,
    smoothing_shares,
    target_terms,
)
from .reference.loss import matmul
from .samplers.samples import Samples

Rows = tuple[Tensor, Tensor, Tensor, Tensor]


def takes_total(operands: Operands, step: Step) -> bool:
    """Whether `composed_total` serves this step.

    Not per-row samples, which have no operator for it; not under torch.compile, where Functions
    have no graphs inside.
    """
    return (
        isinstance(step.samples, Samples)
        and step.samples.shared
        and not torch.compiler.is_compiling()
        and on_cpu(operands.input)
        and kernels_take("negative_loss_and_grads", *operands)
    )


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
        if s.options.label_smoothing > 0.0:
            mean = torch.where(s.counted, mean_of_targets(terms.z, s), 0)
            outputs.append(s.options.label_smoothing * mean)
    upstream = [scale] * len(outputs)
    share = scale if terms.share == 1.0 else scale * terms.share
    sigmoid = s.options.loss != "softmax"
    loss, peak, *grads, classes = operators.negative_loss_and_grads(
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
    if s.options.label_smoothing > 0.0:
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
    coefficient = share[None] * (-o.label_smoothing / o.temperature)
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
    mean = matmul(h, of_input[0]) / -o.label_smoothing - mean_log_count
    if bias is None:
        return mean
    return mean + matmul(share, bias.detach()[ids].to(share.dtype)) / o.temperature


class _ComposedTotal(torch.autograd.Function):
    """The total of the losses, and loss, lse, target logit and error of the rows.

    The first backward pass hands out the gradients of the forward pass, a later one computes them
    again, as in `_autograd`.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, s: Step, scale: Tensor
    ) -> tuple[Tensor, ...]:
        rows, ctx.grads = _sweep(Operands(input, weight, bias), s, scale)
        # The step's samples are the caller's, and saved so that autograd sees a change of them.
        assert isinstance(s.samples, Samples)
        ctx.save_for_backward(input, weight, bias, scale, *s.samples)
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
        sweep = Sweep(sparse_grad, False, False)
        return (*wanted_grads(ctx, weight, bias, grads, sweep), None, None)


def composed_total(
    operands: Operands, step: Step, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """sum_i scale_i loss_i, a differentiable scalar, and loss, lse, target logit and error [B].

    Args:
        operands, step: as `reference.composed.prepare` gives them.
        scale: [B], in the dtype of the sums, without a gradient; 0 in rows that do not count.
    """
    return _ComposedTotal.apply(*as_kernels_take(*operands), step, scale)  # type: ignore[no-untyped-call, no-any-return]
