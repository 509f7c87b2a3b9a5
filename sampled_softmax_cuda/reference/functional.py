"""The loss with all its options and reductions in plain PyTorch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from .composed import (
    LossOptions,
    Operands,
    RowsOf,
    Step,
    composed_rows,
    prepare,
    reference_unit_rows,
)
from .loss import (
    SampledSoftmaxDetails,
    count_of_samples,
    loss_rows,
    result_dtype,
    reweighted,
    row_scale,
)
from .negatives import negative_rows
from .per_row import per_row_rows

if TYPE_CHECKING:
    from ..samplers.keyed import KeyedSamples
    from ..samplers.samples import Samples


def reference_negatives(
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
    corrected: bool,
) -> tuple[Tensor, Tensor]:
    """What `composed_rows` asks of the negatives, in plain PyTorch."""
    given = flat_samples(samples.materialize())
    rows = negative_rows if given.shared else per_row_rows
    return rows(
        input,
        weight,
        bias,
        target_logit,
        hits,
        counted,
        given.ids,
        count_of_samples(given.log_expected_count, corrected),
        inv_temperature,
        softcap,
        remove_hits,
        sigmoid,
        sparse_grad,
    )


def single_target(target: Tensor, input: Tensor) -> bool:
    """Whether each row has one true class: target [*] or [*, 1]."""
    return target.dim() < input.dim() or target.shape[-1] == 1


def is_plain(
    options: LossOptions,
    target: Tensor,
    input: Tensor,
    samples: Samples | KeyedSamples,
    exclude: Tensor | None,
) -> bool:
    """Whether it is the plain softmax of one true class and of samples that all rows share."""
    return options.plain and exclude is None and single_target(target, input) and samples.shared


def flat_samples(samples: Samples) -> Samples:
    """Samples of rows [*] as samples of rows [B]; those shared by all rows as they are."""
    ids, log_count, target_log_count = samples
    if ids.dim() > 1:
        ids = ids.reshape(math.prod(ids.shape[:-1]), ids.shape[-1])
        log_count = None if log_count is None else log_count.reshape(ids.shape)
    return type(samples)(ids, log_count, target_log_count)


def prepare_rows(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    samples: Samples | KeyedSamples,
    exclude: Tensor | None,
    options: LossOptions,
    sparse_grad: bool,
    unit_rows: RowsOf = reference_unit_rows,
) -> tuple[Operands, Step]:
    """`composed.prepare` for shapes as in `sampled_softmax_loss`."""
    h = input.reshape(-1, input.shape[-1])
    num_rows = h.shape[0]
    return prepare(
        h,
        weight,
        bias,
        target.reshape(num_rows, 1 if target.dim() < input.dim() else target.shape[-1]),
        samples,
        None if exclude is None else exclude.reshape(num_rows, exclude.shape[-1]),
        options,
        sparse_grad,
        unit_rows,
    )


def counted_rows(target: Tensor, input: Tensor, ignore_index: int) -> Tensor:
    """Which rows count, [*] bool: those with a true class."""
    there = target != ignore_index
    return there if target.dim() < input.dim() else there.any(dim=-1)


def sampled_softmax_loss(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    samples: Samples | KeyedSamples,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    correction: str = "both",
    remove_accidental_hits: bool = True,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
    sparse_grad: bool = False,
    return_details: bool = False,
    loss: str = "softmax",
    softcap: float | None = None,
    cosine: bool = False,
    margin: float = 0.0,
    angular_margin: float = 0.0,
    label_smoothing: float = 0.0,
    calibration: float = 0.75,
    exclude: Tensor | None = None,
) -> Tensor | tuple[Tensor, SampledSoftmaxDetails]:
    """`sampled_softmax_cuda.sampled_softmax_loss` in plain PyTorch: same arguments and results.

    Differentiable twice when `sparse_grad` is False. The arguments are not checked here.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> h, weight = torch.ones(2, 3), torch.zeros(10, 3)
        >>> samples = ssc.Samples(torch.tensor([0, 1, 2]), None, None)
        >>> ssc.reference.sampled_softmax_loss(h, weight, torch.tensor([7, 8]), samples)  # log 4
        tensor(1.3863)
    """
    o = LossOptions(
        loss,
        temperature,
        correction,
        remove_accidental_hits,
        ignore_index,
        softcap,
        cosine,
        margin,
        angular_margin,
        label_smoothing,
        calibration,
    )
    shape = input.shape[:-1]
    if is_plain(o, target, input, samples, exclude):
        shared = samples.materialize()
        target_log_count = samples.target_log_expected_count
        rows, *details = loss_rows(
            input.reshape(-1, input.shape[-1]),
            weight,
            bias,
            target.reshape(-1),
            shared.ids,
            count_of_samples(shared.log_expected_count, o.corrects_samples),
            None
            if target_log_count is None or not o.corrects_targets
            else target_log_count.reshape(-1),
            1.0 / o.temperature,
            o.remove_accidental_hits,
            ignore_index,
            sparse_grad,
        )
        if o.correction == "reweighted":
            rows = reweighted(rows)
    else:
        operands, step = prepare_rows(input, weight, bias, target, samples, exclude, o, sparse_grad)
        rows, *details = composed_rows(operands, step, reference_negatives)
    flat_weight = None if sample_weight is None else sample_weight.reshape(-1)
    if reduction != "none":
        counted = counted_rows(target, input, ignore_index).reshape(-1)
        scale = row_scale(counted, flat_weight, reduction, rows.dtype)
        result = (rows * scale).sum()
    else:
        result = (rows if flat_weight is None else rows * flat_weight).reshape(shape)
    result = result.to(result_dtype(input, weight, bias))
    if return_details:
        return result, SampledSoftmaxDetails(*(row.reshape(shape) for row in details))
    return result
