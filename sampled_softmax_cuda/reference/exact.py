"""The exact softmax over all classes in plain PyTorch, in chunks of classes.

No array [B, C] is stored, by the backward pass neither: each chunk of logits is computed again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .._transforms import transformed
from ..losses.rows import cap, chunk_classes, compute_dtype, infinite_is_nan, matmul


def _logits(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    begin: int,
    end: int,
    inv_temperature: float,
    softcap: float,
) -> Tensor:
    z = matmul(h, weight[begin:end].to(h.dtype).T)
    if bias is not None:
        z = z + bias[begin:end].to(h.dtype)
    return cap(z * inv_temperature, softcap)


def logits(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    begin: int,
    end: int,
    inv_temperature: float,
    softcap: float = 0.0,
) -> Tensor:
    """(input · weight[begin:end]ᵀ + bias[begin:end]) * inv_temperature, [B, end - begin], capped.

    float32 (float64 for float64 input); differentiable.
    """
    h = input.to(compute_dtype(input))
    return _logits(h, weight, bias, begin, end, inv_temperature, softcap)


def _chunk_lse(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    begin: int,
    end: int,
    inv_temperature: float,
    softcap: float,
) -> Tensor:
    """Logsumexp over the classes of one chunk; NaN, as in F.cross_entropy, if a logit is inf."""
    z = _logits(h, weight, bias, begin, end, inv_temperature, softcap)
    largest = z.amax(dim=-1, keepdim=True)
    # A chunk of classes that are all switched off by a bias of -inf adds nothing.
    largest = torch.where(largest == -torch.inf, 0, largest)
    return (z - largest).exp().sum(dim=-1).log() + largest[:, 0]


def _chunk_share(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    begin: int,
    end: int,
    inv_temperature: float,
    softcap: float,
    lse: Tensor,
) -> Tensor:
    """The probability of one chunk's classes together, for a known logsumexp over all classes."""
    z = _logits(h, weight, bias, begin, end, inv_temperature, softcap)
    return (z - lse[:, None]).exp().sum(dim=-1)


def _recomputed_share(*arguments: Any) -> Tensor:
    """`_chunk_share` that is computed again in the backward pass."""
    share: Tensor = checkpoint(_chunk_share, *arguments, use_reentrant=False)
    return share


def _streamed_lse(
    h: Tensor, weight: Tensor, bias: Tensor | None, inv_temperature: float, softcap: float
) -> Tensor:
    """Logsumexp over all classes, [B]. Where a gradient is wanted, a second sweep provides it.

    That sweep adds log(sum of probabilities) = log 1, whose derivative is that of the logsumexp,
    from terms that need no merging of maxima and can be computed again in the backward pass.
    """
    num_classes = weight.shape[0]
    chunk = chunk_classes(h.shape[0], num_classes)
    ranges = [(b, min(b + chunk, num_classes)) for b in range(0, num_classes, chunk)]
    with torch.no_grad():
        parts = [_chunk_lse(h, weight, bias, *r, inv_temperature, softcap) for r in ranges]
        lse = torch.stack(parts).logsumexp(dim=0)
    if not torch.is_grad_enabled():
        return lse
    share = _chunk_share if transformed(h, weight, bias) else _recomputed_share
    total = torch.zeros_like(lse)
    for begin, end in ranges:
        arguments = (h, weight, bias, begin, end, inv_temperature, softcap, lse)
        total = total + share(*arguments)
    return lse + total.log()


def exact_loss_rows(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    inv_temperature: float,
    ignore_index: int,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Cross entropy over all classes and logsumexp, each [B]; differentiable, never [B, C].

    Ignored rows give 0, other targets outside [0, C) NaN.
    """
    dtype = compute_dtype(input)
    num_classes = weight.shape[0]
    counted = target != ignore_index
    in_range = (target >= 0) & (target < num_classes)
    row_target = torch.where(counted & in_range, target, 0)
    h = torch.where(counted[:, None], input, 0).to(dtype)

    lse = _streamed_lse(h, weight, bias, inv_temperature, softcap)
    z_target = infinite_is_nan((h * weight[row_target].to(dtype)).sum(dim=-1))
    if bias is not None:
        z_target = z_target + bias[row_target].to(dtype)
    z_target = cap(z_target * inv_temperature, softcap)
    loss = (lse - z_target).masked_fill(counted & ~in_range, torch.nan)
    return torch.where(counted, loss, 0), torch.where(counted, lse, 0)
