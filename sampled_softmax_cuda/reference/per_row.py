"""Losses against negatives of each row's own, in plain PyTorch.

B rows, D features, S samples of each row; h = input, r = target_logit, n_k the expected count of
class k:

    z_s     = cap((h·W_s + b_s) / temperature) - log n_s      cap(x) = softcap tanh(x / softcap)
    softmax = log(1 + sum_s exp(z_s - r))
    sigmoid = sum_s log(1 + exp z_s)

as negatives.py has them for samples that all rows share. Any device and dtype; everything is
computed in float32 (float64 for float64 input), and [B, S, D] gathered rows exist a chunk of rows
at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .._transforms import transforming
from ..losses.gather import followed_ids, gather_rows
from ..losses.rows import cap, compute_dtype, correction_of, matmul
from .negatives import reduce_negatives

_CHUNK = 1 << 24  # gathered elements at a time


def _kept(
    hits: Tensor,
    counted: Tensor | None,
    ids: Tensor,
    ids_are_bad: Tensor | None,
    log_expected_count: Tensor | None,
    remove_hits: bool,
) -> tuple[Tensor, Tensor]:
    """Which samples [B, S] count at all, and which of them are hits; those outside are none."""
    hit = torch.zeros_like(ids, dtype=torch.bool)
    for k in range(hits.shape[1]):
        hit = hit | (ids == hits[:, k : k + 1])  # not in place: torch.vmap
    if ids_are_bad is not None:
        hit = hit & ~ids_are_bad
    keep = torch.ones_like(hit) if log_expected_count is None else log_expected_count != torch.inf
    if counted is not None:
        keep = keep & counted[:, None]
    return keep & ~hit if remove_hits else keep, hit


def _places(ids: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Classes [N] to gather, and the place of each sample among them [B, S]: N for those not kept.

    Only rows that count are used: NaN in others must not spread by way of 0 * NaN. Each class once,
    so that there is one gradient of weight; but torch.vmap knows no sizes that depend on data.
    """
    if transforming():
        place = torch.arange(ids.numel(), device=ids.device).view(ids.shape)
        return ids.reshape(-1), torch.where(keep, place, ids.numel())
    classes, place = torch.unique(ids[keep], return_inverse=True)
    return classes, torch.full_like(ids, classes.shape[0]).masked_scatter(keep, place)


def per_row_rows(
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
    """Loss and largest logit of a sample that is no hit, both [B]; the loss is differentiable.

    Args:
        input: [B, D] floating point.
        weight: [C, D] floating point.
        bias: [C] floating point, or None.
        target_logit: [B], r, in the dtype of the result.
        hits: [B, K] int64, classes (-1: none) that do not count for the peak.
        counted: [B] bool or None; other rows give 0 and no gradient, whatever they hold.
        ids: [B, S] int64. Outside [0, C): IndexError on the CPU, and NaN elsewhere.
        log_expected_count: [B, S] log n, +inf for a sample that contributes nothing, -inf for a
            class that is never drawn, which corrects nothing; None: n = 1.
        inv_temperature: 1 / temperature.
        softcap: 0 for none.
        remove_hits: whether hits do not count for the loss either.
        sigmoid: which loss.
        sparse_grad: gradients of weight and bias as sparse_coo tensors over the classes that count.

    Example:
        >>> import torch
        >>> h, weight = torch.ones(1, 3), torch.zeros(10, 3)
        >>> ids, hits = torch.tensor([[1, 2, 7]]), torch.tensor([[7]])
        >>> r = torch.zeros(1)
        >>> per_row_rows(h, weight, None, r, hits, None, ids, None, 1.0, 0.0, True, False)[0]
        tensor([1.0986])
    """
    dtype = compute_dtype(input)
    ids, ids_are_bad = followed_ids(ids, weight.shape[0])
    keep, hit = _kept(hits, counted, ids, ids_are_bad, log_expected_count, remove_hits)
    classes, where = _places(ids, keep)
    rows = gather_rows(weight, classes, dtype, sparse_grad)
    rows = torch.cat((rows, rows.new_zeros(1, rows.shape[1])))
    biases = None
    if bias is not None:
        biases = gather_rows(bias, classes, dtype, sparse_grad)
        biases = torch.cat((biases, biases.new_zeros(1)))
    if counted is not None:
        input = torch.where(counted[:, None], input, 0)
        target_logit = torch.where(counted, target_logit, 0)
    losses, peaks = [], []
    step = max(1, _CHUNK // max(1, ids.shape[1] * input.shape[1]))
    for begin in range(0, max(1, ids.shape[0]), step):
        part = slice(begin, begin + step)
        x = matmul(rows[where[part]], input[part].to(dtype)[:, :, None])[:, :, 0]
        if biases is not None:
            x = x + biases[where[part]]
        z = cap(x * inv_temperature, softcap)
        if log_expected_count is not None:
            z = z - torch.where(keep, correction_of(log_expected_count, dtype), 0)[part]
        if ids_are_bad is not None:
            z = z.masked_fill(ids_are_bad[part], torch.nan)
        z = z.masked_fill(~keep[part], -torch.inf)
        z = torch.cat((z, z.new_full((z.shape[0], 1), -torch.inf)), dim=1)  # S may be 0
        is_hit = F.pad(hit[part], (0, 1))
        loss, peak = reduce_negatives(z, is_hit, target_logit[part], None, False, sigmoid)
        losses.append(loss)
        peaks.append(peak)
    loss, peak = torch.cat(losses), torch.cat(peaks)
    if counted is not None:
        loss, peak = torch.where(counted, loss, 0), torch.where(counted, peak, 0)
    return loss, peak
