"""The sampled softmax loss in plain PyTorch: what every faster backend is compared with.

B rows, D features, C classes, S samples; h = input, t = target, n_k = expected count of class k:

    z_s  = (h·W_s + b_s) / temperature - log n_s          for every sample s
    z_t  = (h·W_t + b_t) / temperature - log n_t          for the target of the row
    loss = log(exp z_t + sum_s exp z_s) - z_t             samples with s == t left out

Any device and dtype; everything is computed in float32 (float64 for float64 input) and [B, S]
logits are stored. Method: Jean et al., "On Using Very Large Target Vocabulary for Neural Machine
Translation" (2015); the correction is that of Bengio and Senécal, "Adaptive Importance Sampling to
Accelerate Training of a Neural Probabilistic Language Model" (2008).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._load import may_look
from .._sparse import mark_coalesced_when_done, sparse_rows
from .._transforms import transformed, unwrapped


class SampledSoftmaxDetails(NamedTuple):
    """What `return_details=True` adds to the loss; all have the shape of the target.

    They are float32 (float64 for float64 input), carry no gradient, and are 0 in ignored rows.
    """

    lse: Tensor
    """Logsumexp over the corrected logits of the target and of the samples that count."""
    target_logit: Tensor
    """The corrected logit of the target, z_t."""
    error: Tensor
    """1 where some sample that counts has a larger corrected logit than the target, else 0."""


class _GatherRows(torch.autograd.Function):
    """The autograd of `gather_rows`."""

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, ids: Tensor, dtype: torch.dtype, sparse: bool, traced: bool
    ) -> Tensor:
        ctx.save_for_backward(table, ids)
        ctx.sparse, ctx.traced = sparse, traced
        return table[ids].to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        table, ids = ctx.saved_tensors
        if not ctx.sparse:
            result = grad.new_zeros(table.shape).index_add(0, ids, grad).to(table.dtype)
        elif ctx.traced:
            result = sparse_rows(ids[None], grad.to(table.dtype), table, coalesced=False)
        else:
            rows, position = torch.unique(ids, return_inverse=True)
            values = grad.new_zeros((rows.numel(), *table.shape[1:])).index_add(0, position, grad)
            mark_coalesced_when_done((table,), rows)
            result = sparse_rows(rows[None], values.to(table.dtype), table)
        return result, None, None, None, None


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def _gather_in_graph(table: Tensor, ids: Tensor, dtype: torch.dtype) -> Any:
    """One node of a graph with a sparse gradient, which Dynamo, but not AOTAutograd, stumbles at.

    How many ids are distinct is nothing that a graph can know: the gradient has a row for each.
    """
    return _GatherRows.apply(table, ids, dtype, True, True)  # type: ignore[no-untyped-call]


def gather_rows(table: Tensor, ids: Tensor, dtype: torch.dtype, sparse_grad: bool) -> Tensor:
    """table[ids] in `dtype`, with a dense or a row-sparse gradient for the table [C, ...].

    Gradients of repeated rows are added in `dtype` and rounded once to the table's own; not so in
    a sparse gradient of a traced graph, which is not coalesced. Under transforms it is plain
    indexing, whose derivatives torch has all of; they are dense.
    """
    if transformed(table):
        return table.to(dtype)[ids]
    if sparse_grad and torch.compiler.is_compiling():
        return _gather_in_graph(table, ids, dtype)  # type: ignore[no-any-return]
    return _GatherRows.apply(table, ids, dtype, sparse_grad, False)  # type: ignore[no-untyped-call, no-any-return]


def compute_dtype(input: Tensor) -> torch.dtype:
    """The dtype that sums over D and S are taken in: float64 for float64, else float32."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def result_dtype(input: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype:
    """The dtype of the loss: float32 under autocast, else what the parameters promote to."""
    dtype = input.dtype
    for parameter in (weight, bias):
        if parameter is not None and parameter.dtype != dtype:
            dtype = torch.promote_types(dtype, parameter.dtype)
    if dtype in (torch.float32, torch.float64) or not torch.amp.is_autocast_available(
        input.device.type
    ):
        return dtype
    return torch.float32 if torch.is_autocast_enabled(input.device.type) else dtype


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in their own dtype, under autocast as well."""
    if not torch.amp.is_autocast_available(a.device.type):
        return a @ b
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def correction_of(log_count: Tensor, dtype: torch.dtype) -> Tensor:
    """What log expected counts take off logits: 0 in place of -inf, since a class that is never
    drawn has nothing to correct."""
    return torch.nan_to_num(log_count.detach().to(dtype), math.nan, math.inf, 0.0)


def count_of_samples(log_expected_count: Tensor | None, corrected: bool) -> Tensor | None:
    """What is subtracted from the samples' logits. An infinite count leaves a sample out, whether
    or not counts correct anything."""
    if log_expected_count is None or corrected:
        return log_expected_count
    return torch.where(log_expected_count == torch.inf, log_expected_count, 0.0)


def infinite_is_nan(product: Tensor) -> Tensor:
    """The products of rows with their targets, NaN in place of inf.

    What is infinite there is no logit, and neither a cap nor a sigmoid makes one of it: so bad
    numbers in a row show in its loss and in its gradient, whichever loss it is.
    """
    return product + torch.where(torch.isfinite(product), 0.0, torch.nan)


def followed_ids(ids: Tensor, num_classes: int) -> tuple[Tensor, Tensor | None]:
    """Class ids that index rows, and which of them stand in for an id outside [0, C).

    On the CPU such an id is an IndexError, and None is returned. Elsewhere, and in a traced graph,
    class 0 stands in.
    """
    seen = ids if torch.compiler.is_compiling() else unwrapped(ids)
    if not may_look(seen):
        bad = (ids < 0) | (ids >= num_classes)
        return ids.masked_fill(bad, 0), bad
    if seen.numel() > 0:
        low, high = (int(end) for end in seen.aminmax())
        if low < 0 or high >= num_classes:
            raise IndexError(
                f"class ids must be in [0, C={num_classes}), got {low if low < 0 else high}"
            )
    return ids, None


def loss_rows(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ids: Tensor,
    log_expected_count: Tensor | None,
    target_log_expected_count: Tensor | None,
    inv_temperature: float,
    remove_accidental_hits: bool,
    ignore_index: int,
    sparse_grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per-row loss, lse, target logit and error [B]; the loss is differentiable, twice if dense.

    Args:
        input: [B, D] floating point.
        weight: [C, D] floating point.
        bias: [C] floating point, or None.
        target: [B] int64. Rows equal to `ignore_index` give 0; other values outside [0, C), NaN.
        ids: [S] int64, the sampled classes; a class may be there several times. Outside [0, C):
            IndexError on the CPU, and NaN elsewhere.
        log_expected_count: [S] log n_s, or None for n = 1. +inf leaves a sample out, and -inf, of a
            class that is never drawn, corrects nothing.
        target_log_expected_count: [B] log n_t, or None for n = 1; -inf as above.
        inv_temperature: 1 / temperature; multiplies the logits before the correction.
        remove_accidental_hits: leave out the samples that equal the row's target.
        ignore_index: the target value of rows that do not count.
        sparse_grad: gradients of weight and bias as coalesced sparse_coo tensors.
    """
    dtype = compute_dtype(input)
    num_classes, num_samples = weight.shape[0], ids.shape[0]

    counted = target != ignore_index
    in_range = (target >= 0) & (target < num_classes)
    given = ids
    ids, ids_are_bad = followed_ids(ids, num_classes)
    # Rows without a target read a row that is read anyway, and what they hold is set to zero: a
    # NaN in a padding row must not reach the weight's gradient as 0 * NaN.
    row_target = torch.where(counted & in_range, target, ids[0])
    rows = torch.cat((ids, row_target))
    h = torch.where(counted[:, None], input, 0).to(dtype)
    w_sample, w_target = gather_rows(weight, rows, dtype, sparse_grad).tensor_split([num_samples])

    z = matmul(h, w_sample.T)
    z_target = (h * w_target).sum(dim=-1)
    if bias is not None:
        b_rows = gather_rows(bias, rows, dtype, sparse_grad)
        b_sample, b_target = b_rows.tensor_split([num_samples])
        z, z_target = z + b_sample, z_target + b_target
    # A sample of the target's class has the target's logit, whatever the rounding of h @ Wᵀ: it
    # must not count as an error by the last bit.
    hits = given == target[:, None]
    z = torch.where(hits, z_target[:, None], z)
    z, z_target = z * inv_temperature, z_target * inv_temperature
    if log_expected_count is not None:
        z = z - correction_of(log_expected_count, dtype)
    if ids_are_bad is not None:
        z = z.masked_fill(ids_are_bad, torch.nan)
    if target_log_expected_count is not None:
        correction = correction_of(target_log_expected_count, dtype)
        z_target = z_target - torch.where(counted, correction, 0)
    if remove_accidental_hits:
        z = z.masked_fill(hits, -torch.inf)

    # Not torch.logsumexp: an infinite logit has to give NaN, as F.cross_entropy does.
    largest = torch.maximum(z.amax(dim=-1), z_target).detach()
    total = (z - largest[:, None]).exp().sum(dim=-1) + (z_target - largest).exp()
    lse = largest + total.log()
    loss = lse - z_target
    error = (z_target < z.amax(dim=-1)).to(dtype)

    loss = loss.masked_fill(counted & ~in_range, torch.nan)
    loss, lse, z_target, error = (
        torch.where(counted, row, 0) for row in (loss, lse, z_target, error)
    )
    return loss, lse.detach(), z_target.detach(), error.detach()


def reweighted(loss: Tensor) -> Tensor:
    """(1 - p) (N - z_t) from the loss log(1 + exp(N - z_t)), with p = exp(-loss) being a constant.

    N is the logsumexp of the negatives, so p is the target's probability. The gradient is that of
    `loss` itself, (1 - p) softmax(z)_s for a sample and -(1 - p) for the target; only the value
    differs. Khrylchenko et al., "Correcting the LogQ Correction", RecSys 2025.
    """
    uncertainty = -torch.expm1(-loss)
    value = torch.where(uncertainty > 0, uncertainty * (loss + uncertainty.log()), 0.0)
    return loss + (value - loss).detach()


def row_scale(
    counted: Tensor, sample_weight: Tensor | None, reduction: str, dtype: torch.dtype
) -> Tensor:
    """The factor [B] of each row's loss in the reduced loss: sum_i row_scale_i * loss_i.

    "mean" divides by the number (or the weight) of the rows that count; where that is 0, so are
    all factors, and the loss is 0 rather than NaN.
    """
    scale = counted.to(dtype)
    if sample_weight is not None:
        scale = torch.where(scale != 0, sample_weight.to(dtype), 0)
    if reduction == "mean":
        total = scale.sum()
        scale = scale / torch.where(total == 0, 1, total)
    return scale
