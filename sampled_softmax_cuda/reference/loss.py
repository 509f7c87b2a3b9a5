"""The sampled softmax loss in plain PyTorch, which every faster backend is compared with.

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

import torch
from torch import Tensor

from ..losses.gather import followed_ids, gather_rows
from ..losses.rows import compute_dtype, correction_of, matmul


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
