"""The negatives' share of a loss in plain PyTorch, against target logits that are given.

A loss over sampled classes is a function of the row's target logits and of one sum over its
samples. Here is the sum, for samples that all rows share, S of them, with r a row's target logit:

    z_s     = cap((h·W_s + b_s) / temperature) - log n_s      cap(x) = c tanh(x / c), c the softcap
    softmax   log(1 + sum_s exp(z_s - r))                     what the logsumexp is above r
    sigmoid   sum_s softplus(z_s)                             cross entropies of "not this class"

`losses/targets.py` makes losses of it. [B, S] logits are stored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..losses.gather import followed_ids, gather_rows
from ..losses.rows import cap, compute_dtype, correction_of, matmul, softplus


def reduce_negatives(
    z: Tensor,
    is_hit: Tensor,
    target_logit: Tensor,
    counted: Tensor | None,
    remove_hits: bool,
    sigmoid: bool,
) -> tuple[Tensor, Tensor]:
    """Loss and peak [B] of corrected logits z [B, S], as `negative_rows` returns them."""
    peak = z.masked_fill(is_hit, -torch.inf).amax(dim=-1).detach()
    if remove_hits:
        z = z.masked_fill(is_hit, -torch.inf)
    if sigmoid:
        loss = softplus(z).sum(dim=-1)
    else:
        # Not torch.logsumexp: an infinite logit has to give NaN, as F.cross_entropy does.
        largest = torch.maximum(z.amax(dim=-1), target_logit).detach()
        total = (z - largest[:, None]).exp().sum(dim=-1) + (target_logit - largest).exp()
        loss = largest + total.log() - target_logit
    if counted is not None:
        loss, peak = torch.where(counted, loss, 0), torch.where(counted, peak, 0)
    return loss, peak


def negative_rows(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_logit: Tensor,
    hits: Tensor,
    counted: Tensor | None,
    ids: Tensor,
    log_expected_count: Tensor | None,
    inv_temperature: float,
    softcap: float,
    remove_hits: bool,
    sigmoid: bool,
    sparse_grad: bool = False,
) -> tuple[Tensor, Tensor]:
    """The negatives' loss [B], differentiable, and the largest logit among them, peak [B].

    Args:
        input: [B, D] floating point.
        weight: [C, D] floating point.
        bias: [C] or None.
        target_logit: [B] r, in the dtype that sums are taken in; not looked at for sigmoid.
        hits: [B, K] int64 classes of each row's own that are left out of the peak and, with
            `remove_hits`, of the sum; -1 stands for none.
        counted: [B] bool, or None for all. Rows that do not count give 0 and no gradient, whatever
            they hold.
        ids: [S] int64. Outside [0, C): IndexError on the CPU, and NaN elsewhere.
        log_expected_count: [S] log n, or None for n = 1; +inf leaves a sample out, and -inf, of a
            class that is never drawn, corrects nothing.
        inv_temperature: multiplies the logits.
        softcap: bounds them by tanh; 0 for none.
        sigmoid: which of the two sums.
        sparse_grad: gradients of weight and bias as coalesced sparse_coo tensors.
    """
    dtype = compute_dtype(input)
    h = (input if counted is None else torch.where(counted[:, None], input, 0)).to(dtype)
    rows, ids_are_bad = followed_ids(ids, weight.shape[0])
    z = matmul(h, gather_rows(weight, rows, dtype, sparse_grad).T)
    if bias is not None:
        z = z + gather_rows(bias, rows, dtype, sparse_grad)
    z = cap(z * inv_temperature, softcap)
    if ids_are_bad is not None:
        z = z.masked_fill(ids_are_bad, torch.nan)
    if log_expected_count is not None:
        z = z - correction_of(log_expected_count, dtype)
        # A sample that is left out stays out, whatever its row holds.
        z = z.masked_fill(log_expected_count == torch.inf, -torch.inf)
    is_hit = torch.zeros(z.shape, dtype=torch.bool, device=z.device)
    for column in hits.unbind(dim=1):
        is_hit = is_hit | (rows == column[:, None])  # not in place: torch.vmap
    if ids_are_bad is not None:
        is_hit = is_hit & ~ids_are_bad
    return reduce_negatives(z, is_hit, target_logit, counted, remove_hits, sigmoid)
