"""The exact softmax over all classes, streamed: for evaluation, and for small or final steps.

Everything here takes 2-D or any leading shape and never stores an array [*, C], except `logits`,
which returns one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _checks, reference
from ._arguments import as_bool, check_int64
from ._dispatch import as_kernels_take, kernels_take, products_in_tf32
from ._negatives import negatives_loss
from ._option_checks import check_softcap
from ._transforms import operator
from .reference.composed import LossOptions, composed_rows
from .reference.exact import chunk_classes
from .reference.loss import compute_dtype, result_dtype, row_scale
from .reference.negatives import cap
from .samplers.samples import Samples

# An ignore_index that no class id and no sensible target has.
_IGNORE_NOTHING = torch.iinfo(torch.int64).min


class TopK(NamedTuple):
    """The k largest logits of each row and the classes they belong to."""

    values: Tensor
    """[*, k] logits, falling; float32 (float64 for float64 input)."""
    indices: Tensor
    """[*, k] int64 classes."""


def _loss_rows(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    temperature: float,
    ignore_index: int,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The exact loss and logsumexp of each row [B] of input [*, D].

    Capped logits are served by the kernels of the negatives: with every class sampled once, the
    sampled loss is the exact one.
    """
    if softcap is None and kernels_take("exact_loss_rows", input, weight, bias):
        matrices = as_kernels_take(input, weight, bias)
        rest = (1.0 / temperature, ignore_index, products_in_tf32(weight))
        rows: tuple[Tensor, Tensor] = operator("exact_loss_rows")(*matrices, target, *rest)
        return rows
    h = input.reshape(-1, input.shape[-1])
    if softcap is not None and kernels_take("negative_rows", h, weight, bias):
        every = Samples(torch.arange(weight.shape[0], device=weight.device), None, None)
        capped = LossOptions(temperature=temperature, softcap=softcap, ignore_index=ignore_index)
        step = reference.prepare_rows(h, weight, bias, target, every, None, capped, False)
        return composed_rows(*step, negatives_loss)[:2]
    options = (1.0 / temperature, ignore_index, softcap or 0.0)
    return reference.exact_loss_rows(h, weight, bias, target, *options)


def _logits(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    begin: int,
    end: int,
    temperature: float,
    softcap: float | None = None,
) -> Tensor:
    """Logits [B, end - begin] of h [B, D], in float32 (float64 for float64)."""
    if kernels_take("logits", h, weight, bias):
        rest = (begin, end, 1.0 / temperature, products_in_tf32(weight))
        z: Tensor = operator("logits")(*as_kernels_take(h, weight, bias), *rest)
        return cap(z, softcap or 0.0)
    return reference.logits(h, weight, bias, begin, end, 1.0 / temperature, softcap or 0.0)


def _checked_operands(
    fn: str, input: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, cosine: bool
) -> tuple[Tensor, Tensor, float | None]:
    """input, weight and softcap, with rows of norm 1 for cosines: a copy of all C rows."""
    _checks.check_parameters(fn, input, weight, bias)
    cap_at = check_softcap(fn, softcap)
    if not as_bool(fn, "cosine", cosine):
        return input, weight, cap_at
    dtype = compute_dtype(input)
    unit_input, unit_weight = (F.normalize(x.to(dtype), dim=-1) for x in (input, weight))
    return unit_input, unit_weight, cap_at


def exact_cross_entropy(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    softcap: float | None = None,
    cosine: bool = False,
) -> Tensor:
    """`F.cross_entropy(F.linear(input, weight, bias) / temperature, target)` without logits [*, C].

    Args:
        input: [*, D].
        weight: [C, D].
        target: [*] int64.
        bias: [C] or None.
        temperature: divides the logits.
        softcap, cosine: as in `sampled_softmax_loss`; cosines take a copy of weight.
        ignore_index: rows with this target give loss 0 and do not count.
        reduction: "mean" (0 if no row counts), "sum" or "none".

    Returns:
        The loss in the dtype that the arguments promote to, float32 under autocast; differentiable
        once, with dense gradients, at the cost of one sweep over the classes more.

    Raises:
        ValueError, TypeError, IndexError: as `sampled_softmax_loss`.

    Example:
        >>> import torch
        >>> from sampled_softmax_cuda.exact import exact_cross_entropy
        >>> exact_cross_entropy(torch.ones(2, 3), torch.zeros(8, 3), torch.tensor([0, 7]))  # log 8
        tensor(2.0794)
    """
    fn = "exact_cross_entropy"
    dtype = result_dtype(input, weight, bias)
    input, weight, softcap = _checked_operands(fn, input, weight, bias, softcap, cosine)
    _checks.check_target(fn, target, input, weight.shape[0])
    temperature = _checks.check_temperature(fn, temperature)
    ignore_index = _checks.check_ignore_index(fn, ignore_index)
    _checks.check_choice(fn, "reduction", reduction, _checks.REDUCTIONS)
    _checks.check_id_range(fn, "target", target, weight.shape[0], ignore_index)
    flat = target.reshape(-1)
    loss, _ = _loss_rows(input, weight, bias, flat, temperature, ignore_index, softcap)
    if reduction == "none":
        return loss.reshape(target.shape).to(dtype)
    scale = row_scale(flat != ignore_index, None, reduction, loss.dtype)
    return (loss * scale).sum().to(dtype)


def logits(
    input: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    cosine: bool = False,
) -> Tensor:
    """(input · weightᵀ + bias) / temperature over all classes, [*, C]; differentiable once.

    float32 (float64 for float64 input), whatever the dtype of the parameters. softcap and cosine
    are those of `sampled_softmax_loss`.

    Example:
        >>> import torch
        >>> from sampled_softmax_cuda.exact import logits
        >>> logits(torch.ones(1, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), temperature=2.0)
        tensor([[1.5000, 3.5000]])
    """
    input, weight, softcap = _checked_operands("logits", input, weight, bias, softcap, cosine)
    temperature = _checks.check_temperature("logits", temperature)
    num_classes = weight.shape[0]
    h = input.reshape(-1, input.shape[-1])
    z = _logits(h, weight, bias, 0, num_classes, temperature, softcap)
    return z.reshape(*input.shape[:-1], num_classes)


def log_prob(
    input: Tensor,
    weight: Tensor,
    ids: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    cosine: bool = False,
) -> Tensor:
    """Exact log probability of classes `ids` under the softmax over all classes.

    Args:
        input: [*, D].
        weight: [C, D].
        ids: int64, [*] for one class per row or [*, K] for several.
        bias: [C] or None.
        temperature: divides the logits.
        softcap, cosine: as in `exact_cross_entropy`.

    Returns:
        Log probabilities of the shape of ids, float32 (float64 for float64 input); differentiable.

    Example:
        >>> import torch
        >>> from sampled_softmax_cuda.exact import log_prob
        >>> log_prob(torch.ones(2, 3), torch.zeros(8, 3), torch.tensor([[0, 1], [2, 3]])).exp()
        tensor([[0.1250, 0.1250],
                [0.1250, 0.1250]])
    """
    fn = "log_prob"
    input, weight, softcap = _checked_operands(fn, input, weight, bias, softcap, cosine)
    check_int64(fn, "ids", ids)
    temperature = _checks.check_temperature(fn, temperature)
    leading = input.shape[:-1]
    if ids.shape != leading and (ids.dim() != input.dim() or ids.shape[:-1] != leading):
        raise ValueError(
            f"{fn}: ids must be {list(leading)} or {[*leading, 'K']} to match input"
            f" {list(input.shape)}, got {list(ids.shape)}"
        )
    _checks.check_device(fn, "ids", ids, input)
    _checks.check_id_range(fn, "ids", ids, weight.shape[0])
    h = input.reshape(-1, input.shape[-1])
    columns = ids.reshape(h.shape[0], -1) if ids.numel() else ids.new_zeros((h.shape[0], 0))
    if columns.shape[1] == 0:
        return h.new_zeros(ids.shape, dtype=compute_dtype(input))
    first = columns[:, 0].contiguous()
    loss, _ = _loss_rows(input, weight, bias, first, temperature, _IGNORE_NOTHING, softcap)
    if columns.shape[1] == 1:
        return (-loss).reshape(ids.shape)
    z = (h[:, None, :].to(loss.dtype) * weight[columns].to(loss.dtype)).sum(dim=-1)
    if bias is not None:
        z = z + bias[columns].to(loss.dtype)
    z = cap(z / temperature, softcap or 0.0)
    return (z - z[:, :1] - loss[:, None]).reshape(ids.shape)


@torch.no_grad()
def topk(
    input: Tensor,
    weight: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    cosine: bool = False,
) -> TopK:
    """The k classes with the largest logits, in chunks of classes; no gradient.

    Of equal logits any may come first, or be left out, as with torch.topk.

    Args:
        input: [*, D].
        weight: [C, D].
        k: 1 to C.
        bias: [C] or None.
        temperature: divides the logits.
        softcap, cosine: as in `logits`.

    Returns:
        `TopK(values [*, k], indices [*, k])`, sorted by falling value.

    Example:
        >>> import torch
        >>> from sampled_softmax_cuda.exact import topk
        >>> topk(torch.ones(1), torch.tensor([[1.0], [5.0], [3.0]]), 2).indices
        tensor([1, 2])
    """
    fn = "topk"
    input, weight, softcap = _checked_operands(fn, input, weight, bias, softcap, cosine)
    k = _checks.check_positive_int(fn, "k", k)
    temperature = _checks.check_temperature(fn, temperature)
    num_classes = weight.shape[0]
    if k > num_classes:
        raise ValueError(f"{fn}: k must be at most C={num_classes}, got {k}")
    h = input.reshape(-1, input.shape[-1])
    chunk = chunk_classes(h.shape[0], num_classes)
    values = h.new_empty((h.shape[0], 0), dtype=compute_dtype(input))
    indices = torch.empty(values.shape, dtype=torch.int64, device=h.device)
    for begin in range(0, num_classes, chunk):
        end = min(begin + chunk, num_classes)
        z = _logits(h, weight, bias, begin, end, temperature, softcap)
        best = z.topk(min(k, end - begin), dim=1)
        values = torch.cat((values, best.values), dim=1)
        indices = torch.cat((indices, best.indices + begin), dim=1)
        values, order = values.topk(min(k, values.shape[1]), dim=1)
        indices = indices.gather(1, order)
    shape = (*input.shape[:-1], k)
    return TopK(values.reshape(shape), indices.reshape(shape))
