"""Arithmetic of single rows: dtypes, corrections, caps, and what a row counts for."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .._rules import host_rules

# A sum over fewer elements than this is taken by one thread; a larger one is split here, so that
# the result does not depend on the number of threads.
_SERIAL_SUM = 1 << 14

CHUNK_ELEMENTS = 1 << 22
"""Classes per chunk are chosen so that a chunk of logits takes about this many elements."""


class SampledSoftmaxDetails(NamedTuple):
    """The details that `return_details=True` adds to the loss, each of the shape of the target.

    They are float32 (float64 for float64 input), carry no gradient, and are 0 in ignored rows.
    """

    lse: Tensor
    """Logsumexp over the corrected logits of the target and of the samples that count."""
    target_logit: Tensor
    """The corrected logit of the target, z_t."""
    error: Tensor
    """1 where some sample that counts has a larger corrected logit than the target, else 0."""


def compute_dtype(input: Tensor) -> torch.dtype:
    """The dtype that sums over D and S are taken in: float64 for float64, else float32."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def result_dtype(input: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype:
    """The dtype of the loss: float32 under autocast, else what the parameters promote to."""
    dtype = input.dtype
    if weight.dtype is not dtype:
        dtype = torch.promote_types(dtype, weight.dtype)
    if bias is not None and bias.dtype is not dtype:
        dtype = torch.promote_types(dtype, bias.dtype)
    if (
        dtype is torch.float32
        or dtype is torch.float64
        or not torch.amp.is_autocast_available(input.device.type)
    ):
        return dtype
    return torch.float32 if torch.is_autocast_enabled(input.device.type) else dtype


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in their own dtype, under autocast as well."""
    if not torch.amp.is_autocast_available(a.device.type):
        return a @ b
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def cap(z: Tensor, softcap: float) -> Tensor:
    """softcap * tanh(z / softcap), or z itself if softcap is 0."""
    return torch.tanh(z / softcap) * softcap if softcap > 0 else z


def softplus(z: Tensor) -> Tensor:
    """log(1 + exp(z)), without PyTorch's cut at 20, which float64 would notice."""
    return F.softplus(z, threshold=80.0)


def correction_of(log_count: Tensor, dtype: torch.dtype) -> Tensor:
    """The part of log expected counts that corrects logits: 0 in place of -inf, since a class that
    is never drawn has nothing to correct."""
    return torch.nan_to_num(log_count.detach().to(dtype), math.nan, math.inf, 0.0)


def count_of_samples(log_expected_count: Tensor | None, corrected: bool) -> Tensor | None:
    """The log counts to subtract from the samples' logits. An infinite one leaves a sample out,
    whether or not counts correct anything."""
    if log_expected_count is None or corrected:
        return log_expected_count
    return torch.where(log_expected_count == torch.inf, log_expected_count, 0.0)


def infinite_is_nan(product: Tensor) -> Tensor:
    """The products of rows with their targets, NaN in place of inf.

    An infinite product is no logit, and neither a cap nor a sigmoid makes one of it: so bad
    numbers in a row show in its loss and in its gradient, whichever loss it is.
    """
    return product + torch.where(torch.isfinite(product), 0.0, torch.nan)


def reweighted(loss: Tensor) -> Tensor:
    """(1 - p) (N - z_t) from the loss log(1 + exp(N - z_t)), with p = exp(-loss) being a constant.

    N is the logsumexp of the negatives, so p is the target's probability. The gradient is that of
    `loss` itself, (1 - p) softmax(z)_s for a sample and -(1 - p) for the target; only the value
    differs. Khrylchenko et al., "Correcting the LogQ Correction", RecSys 2025.
    """
    uncertainty = -torch.expm1(-loss)
    value = torch.where(uncertainty > 0, uncertainty * (loss + uncertainty.log()), 0.0)
    return loss + (value - loss).detach()


def weight_of_rows(sample_weight: Tensor | None, of_class: Tensor, input: Tensor) -> Tensor:
    """The factors [B] of rows, from their weights and those of their classes, both [B].

    The product is taken in the dtype of sums at least: float16 ends at 65504, and 16 bits would
    round it once more.
    """
    if sample_weight is None:
        return of_class
    return (
        sample_weight.to(torch.promote_types(sample_weight.dtype, compute_dtype(input))) * of_class
    )


def row_scale(
    counted: Tensor, row_weight: Tensor | None, reduction: str, dtype: torch.dtype
) -> Tensor:
    """The factor [B] of each row's loss in the reduced loss: sum_i row_scale_i * loss_i.

    "mean" divides by the number (or the weight) of the rows that count; where that is 0, so are
    all factors, and the loss is 0 rather than NaN.
    """
    scale = counted.to(dtype)
    if row_weight is not None:
        scale = torch.where(scale != 0, row_weight.to(dtype), 0)
    if reduction == "mean":
        total = scale.sum()
        scale = scale / torch.where(total == 0, 1, total)
    return scale


def ordered_sum(rows: Tensor) -> Tensor:
    """The sum of [B] values in an order that the number of threads does not change."""
    if not host_rules(rows) or torch.compiler.is_compiling() or rows.numel() <= _SERIAL_SUM:
        return rows.sum()
    return torch.stack([part.sum() for part in torch.split(rows, _SERIAL_SUM)]).sum()


def reduce_rows(rows: Tensor, counted: Tensor, row_weight: Tensor | None, reduction: str) -> Tensor:
    """The losses [B] of rows, weighted and reduced: [], or [B] with reduction="none"."""
    if reduction == "none":
        return rows if row_weight is None else rows * row_weight
    return ordered_sum(rows * row_scale(counted, row_weight, reduction, rows.dtype))


def chunk_classes(num_rows: int, num_classes: int) -> int:
    """How many classes a chunk of logits [num_rows, chunk] takes.

    At most max(CHUNK_ELEMENTS, 1024 * num_rows) logits: 16 MiB of float32, which the L2 cache of a
    large GPU keeps between the kernel that writes and the one that reads, and from 4096 rows on
    4 KiB a row, since a matmul with fewer columns would read the rows in vain.
    """
    return min(num_classes, max(1024, CHUNK_ELEMENTS // max(num_rows, 1)))
