"""The loss with all its options and reductions in plain PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from .composed import LossOptions, NegativesLoss, composed_rows
from .loss import SampledSoftmaxDetails, loss_rows, result_dtype, reweighted, row_scale
from .negatives import negative_rows

if TYPE_CHECKING:
    from ..samplers.base import Samples

Rows = tuple[Tensor, Tensor, Tensor, Tensor]
"""Loss, lse, target logit and error, each [B]."""


def shared_negatives(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_logit: Tensor,
    hits: Tensor,
    counted: Tensor | None,
    samples: Samples,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    """`negative_rows` of `Samples`, as `composed_rows` calls it."""
    tensors = (samples.ids, samples.log_expected_count)
    return negative_rows(input, weight, bias, target_logit, hits, counted, *tensors, *rest)


def single_target(target: Tensor, input: Tensor) -> bool:
    """Whether each row has one true class: target [*] or [*, 1]."""
    return target.dim() < input.dim() or target.shape[-1] == 1


def flat_samples(samples: Samples) -> Samples:
    """Samples of rows [*] as samples of rows [B]; those shared by all rows as they are."""
    ids, log_count, target_log_count = samples
    if ids.dim() > 1:
        ids = ids.reshape(-1, ids.shape[-1])
        log_count = None if log_count is None else log_count.reshape(ids.shape)
    return type(samples)(ids, log_count, target_log_count)


def option_rows(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    samples: Samples,
    exclude: Tensor | None,
    options: LossOptions,
    sparse_grad: bool,
    negatives: NegativesLoss = shared_negatives,
) -> Rows:
    """The rows [B] of a loss with any options, composed with `negatives`.

    Shapes as in `sampled_softmax_loss`; the loss is differentiable.
    """
    h = input.reshape(-1, input.shape[-1])
    num_rows = h.shape[0]
    return composed_rows(
        h,
        weight,
        bias,
        target.reshape(num_rows, 1 if target.dim() < input.dim() else target.shape[-1]),
        flat_samples(samples),
        None if exclude is None else exclude.reshape(num_rows, exclude.shape[-1]),
        options,
        sparse_grad,
        negatives,
    )


def counted_rows(target: Tensor, input: Tensor, ignore_index: int) -> Tensor:
    """Which rows count, [*] bool: those with a true class."""
    there = target != ignore_index
    return there if target.dim() < input.dim() else there.any(dim=-1)


def sampled_softmax_loss(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    samples: Samples,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
    sparse_grad: bool = False,
    return_details: bool = False,
    exclude: Tensor | None = None,
    **options: Any,
) -> Tensor | tuple[Tensor, SampledSoftmaxDetails]:
    """`sampled_softmax_cuda.sampled_softmax_loss` in plain PyTorch: same arguments and results.

    Differentiable twice when `sparse_grad` is False. The arguments are not checked here. `options`
    are the fields of `LossOptions`.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> h, weight = torch.ones(2, 3), torch.zeros(10, 3)
        >>> samples = ssc.Samples(torch.tensor([0, 1, 2]), None, None)
        >>> ssc.reference.sampled_softmax_loss(h, weight, torch.tensor([7, 8]), samples)  # log 4
        tensor(1.3863)
    """
    o = LossOptions(ignore_index=ignore_index, **options)
    shape = input.shape[:-1]
    if o.plain and single_target(target, input) and exclude is None and samples.ids.dim() == 1:
        target_log_count = samples.target_log_expected_count
        loss, *details = loss_rows(
            input.reshape(-1, input.shape[-1]),
            weight,
            bias,
            target.reshape(-1),
            samples.ids,
            o.count_of_samples(samples.log_expected_count),
            None
            if target_log_count is None or not o.corrects_targets
            else target_log_count.reshape(-1),
            1.0 / o.temperature,
            o.remove_accidental_hits,
            ignore_index,
            sparse_grad,
        )
        if o.correction == "reweighted":
            loss = reweighted(loss)
    else:
        loss, *details = option_rows(input, weight, bias, target, samples, exclude, o, sparse_grad)
    flat_weight = None if sample_weight is None else sample_weight.reshape(-1)
    if reduction != "none":
        counted = counted_rows(target, input, ignore_index).reshape(-1)
        scale = row_scale(counted, flat_weight, reduction, loss.dtype)
        result = (loss * scale).sum()
    else:
        result = (loss if flat_weight is None else loss * flat_weight).reshape(shape)
    result = result.to(result_dtype(input, weight, bias))
    if return_details:
        return result, SampledSoftmaxDetails(*(row.reshape(shape) for row in details))
    return result
