"""The exact softmax over all classes, streamed: for evaluation, and for small or final steps.

Everything here takes 2-D or any leading shape and never stores an array [*, C], except `logits`,
which returns one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _checks
from ._arguments import as_bool, check_int64
from ._gathered import gathered
from ._torchscript import check_not_traced
from .losses.gather import followed_ids
from .losses.problem import weight_of_targets
from .losses.rows import (
    SampledSoftmaxDetails,
    cap,
    chunk_classes,
    compute_dtype,
    reduce_rows,
    result_dtype,
    weight_of_rows,
)
from .objectives import SOFTMAX
from .ops.exact import chunk_logits, loss_rows
from .options import REDUCTIONS, Options, Reduction, check_softcap, check_z_loss

# An ignore_index that no class id and no sensible target has.
IGNORE_NOTHING = torch.iinfo(torch.int64).min


class TopK(NamedTuple):
    """The k largest logits of each row and the classes they belong to."""

    values: Tensor
    """[*, k] logits, falling; float32 (float64 for float64 input)."""
    indices: Tensor
    """[*, k] int64 classes."""


class _Operands(NamedTuple):
    """The arguments that all functions of this module take, checked."""

    h: Tensor
    """[B, D], of norm 1 for cosines."""
    weight: Tensor
    """[C, D], likewise: a copy of all rows."""
    temperature: float
    softcap: float | None
    padding_idx: int | None

    @property
    def some_class(self) -> int:
        """A class that is not the padding."""
        return 1 if self.padding_idx == 0 else 0

    def logits(self, bias: Tensor | None, begin: int, end: int) -> Tensor:
        """[B, end - begin]"""
        rest = (self.temperature, self.softcap, self.padding_idx)
        return chunk_logits(self.h, self.weight, bias, begin, end, *rest)


def _checked_operands(
    fn: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    cosine: bool,
    padding_idx: int | None,
) -> _Operands:
    check_not_traced(fn)
    _checks.check_parameters(fn, input, weight, bias)
    if padding_idx is not None:
        padding_idx = _checks.check_padding_idx(fn, padding_idx, weight.shape[0])
        if weight.shape[0] == 1:
            raise ValueError(f"{fn}: padding_idx={padding_idx} leaves no class of C=1")
    temperature = _checks.check_temperature(fn, temperature)
    softcap = check_softcap(fn, softcap)
    if as_bool(fn, "cosine", cosine):
        dtype = compute_dtype(input)
        input, weight = (F.normalize(x.to(dtype), dim=-1) for x in (input, weight))
    h = input.reshape(-1, input.shape[-1])
    return _Operands(h, weight, temperature, softcap, padding_idx)


def exact_cross_entropy(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    ignore_index: int = -100,
    padding_idx: int | None = None,
    class_weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    softcap: float | None = None,
    cosine: bool = False,
    z_loss: float = 0.0,
    exclude: Tensor | None = None,
    return_details: bool = False,
) -> Any:
    """`F.cross_entropy(F.linear(input, weight, bias) / temperature, target)` without logits [*, C].

    Args:
        input: [*, D].
        weight: [C, D].
        target: [*] int64.
        bias: [C] or None.
        temperature: divides the logits; 1e-30 to 1e30. Default 1.
        ignore_index: rows with this target give loss 0 and do not count. Default -100.
        padding_idx: a class that is no class: rows with this target do not count either, and it is
            in no normaliser. None (default): every class is one.
        class_weight, sample_weight: as in `sampled_softmax_loss`.
        reduction: "mean" (default; 0 if no row counts), "sum" or "none".
        softcap, cosine, z_loss: as in `sampled_softmax_loss`; cosines take a copy of weight.
        exclude: [*, E] int64, classes that are left out of the row's normaliser; negative values
            are padding.
        return_details: also return `SampledSoftmaxDetails(lse, target_logit, error)`, of all
            classes.

    Returns:
        The loss in the dtype that the arguments promote to, float32 under autocast; differentiable
        once, with dense gradients, at the cost of one sweep over the classes more. Where the
        reference serves, exclude and return_details store logits [*, C].

    Raises:
        ValueError, TypeError, IndexError: as `sampled_softmax_loss`.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> ssc.exact_cross_entropy(torch.ones(2, 3), torch.zeros(8, 3), torch.tensor([0, 7]))
        tensor(2.0794)
    """
    fn = "exact_cross_entropy"
    weight, bias = gathered(fn, weight, bias)
    dtype = result_dtype(input, weight, bias)
    given = _checked_operands(fn, input, weight, bias, temperature, softcap, cosine, padding_idx)
    num_classes = given.weight.shape[0]
    _checks.check_target(fn, target, input, num_classes)
    ignore_index = _checks.check_ignore_index(fn, ignore_index)
    _checks.check_choice(fn, "reduction", reduction, REDUCTIONS)
    _checks.check_id_range(fn, "target", target, num_classes, ignore_index)
    rows = target.reshape(-1)
    if given.padding_idx is not None:
        rows = rows.masked_fill(rows == given.padding_idx, ignore_index)
    if exclude is not None:
        _checks.check_exclude(fn, exclude, input)
        exclude = exclude.reshape(rows.shape[0], exclude.shape[-1])
    return_details = as_bool(fn, "return_details", return_details)
    row_weight = None
    if sample_weight is not None:
        _checks.check_sample_weight(fn, sample_weight, input)
        row_weight = sample_weight.reshape(-1)
    if class_weight is not None:
        _checks.check_class_weight(fn, class_weight, weight)
        of_class = weight_of_targets(class_weight, rows)
        row_weight = weight_of_rows(row_weight, of_class, input)
    options = Options(
        SOFTMAX,
        temperature=given.temperature,
        ignore_index=ignore_index,
        softcap=given.softcap,
        z_loss=check_z_loss(fn, z_loss),
    )
    loss, details = loss_rows(
        given.h, given.weight, bias, rows, options, given.padding_idx, exclude, return_details
    )
    result = reduce_rows(loss, rows != ignore_index, row_weight, reduction).to(dtype)
    if reduction == "none":
        result = result.reshape(target.shape)
    if not return_details:
        return result
    return result, SampledSoftmaxDetails(*(row.reshape(target.shape) for row in details))


def logits(
    input: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    cosine: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """(input · weightᵀ + bias) / temperature over all classes, [*, C]; differentiable once.

    float32 (float64 for float64 input), whatever the dtype of the parameters.

    Args:
        input: [*, D].
        weight: [C, D].
        bias: [C] or None.
        temperature: divides the logits. Default 1.
        softcap, cosine: as in `sampled_softmax_loss`.
        padding_idx: a class that is no class, whose logits are -inf. None (default): all are.

    Raises:
        ValueError, TypeError: as `sampled_softmax_loss`.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> ssc.logits(torch.ones(1, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), temperature=2.0)
        tensor([[1.5000, 3.5000]])
    """
    fn = "logits"
    weight, bias = gathered(fn, weight, bias)
    given = _checked_operands(fn, input, weight, bias, temperature, softcap, cosine, padding_idx)
    num_classes = weight.shape[0]
    z = given.logits(bias, 0, num_classes)
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
    padding_idx: int | None = None,
) -> Tensor:
    """Exact log probability of classes `ids` under the softmax over all classes.

    Args:
        input: [*, D].
        weight: [C, D].
        ids: int64, [*] for one class per row or [*, K] for several. Outside [0, C): IndexError on
            the CPU, and NaN on CUDA.
        bias: [C] or None.
        temperature: divides the logits. Default 1.
        softcap, cosine, padding_idx: as in `exact_cross_entropy`; padding has -inf.

    Returns:
        Log probabilities of the shape of ids, float32 (float64 for float64 input); differentiable
        once.

    Raises:
        ValueError, TypeError: as `sampled_softmax_loss`. IndexError: an id outside [0, C), on the
            CPU.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> ssc.log_prob(torch.ones(2, 3), torch.zeros(8, 3), torch.tensor([[0, 1], [2, 3]])).exp()
        tensor([[0.1250, 0.1250],
                [0.1250, 0.1250]])
    """
    fn = "log_prob"
    weight, bias = gathered(fn, weight, bias)
    given = _checked_operands(fn, input, weight, bias, temperature, softcap, cosine, padding_idx)
    check_int64(fn, "ids", ids)
    leading = input.shape[:-1]
    if ids.shape != leading and (ids.dim() != input.dim() or ids.shape[:-1] != leading):
        raise ValueError(
            f"{fn}: ids must be {list(leading)} or {[*leading, 'K']} to match input"
            f" {list(input.shape)}, got {list(ids.shape)}"
        )
    _checks.check_device(fn, "ids", ids, input)
    _checks.check_id_range(fn, "ids", ids, weight.shape[0])
    h, matrix = given.h, given.weight
    columns = ids.reshape(h.shape[0], -1) if ids.numel() else ids.new_zeros((h.shape[0], 0))
    if columns.shape[1] == 0:
        return h.new_zeros(ids.shape, dtype=compute_dtype(input))
    options = Options(
        SOFTMAX,
        temperature=given.temperature,
        softcap=given.softcap,
        ignore_index=IGNORE_NOTHING,
    )
    padding = given.padding_idx
    if columns.shape[1] == 1 and padding is None:
        loss, _ = loss_rows(h, matrix, bias, columns[:, 0].contiguous(), options)
        return (-loss).reshape(ids.shape)
    followed, bad = followed_ids(columns, matrix.shape[0])
    dtype = compute_dtype(h)
    z = (h[:, None, :].to(dtype) * matrix[followed].to(dtype)).sum(dim=-1)
    if bias is not None:
        z = z + bias[followed].to(dtype)
    z = cap(z / given.temperature, given.softcap or 0.0)
    if padding is not None:
        z = z.masked_fill(columns == padding, -torch.inf)
    # The others are told by the likeliest one, which is the last to have no probability.
    best = z.detach().nan_to_num(nan=-torch.inf).argmax(dim=1, keepdim=True)
    first = columns.gather(1, best)[:, 0].contiguous()
    if padding is not None:
        first = first.masked_fill(first == padding, given.some_class)
    loss, _ = loss_rows(h, matrix, bias, first, options, padding)
    result = z - z.gather(1, best) - loss[:, None]
    result = result.masked_fill(z == -torch.inf, -torch.inf)
    if bad is not None:
        result = result.masked_fill(bad, torch.nan)
    return result.reshape(ids.shape)


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
    padding_idx: int | None = None,
) -> TopK:
    """The k classes with the largest logits, in chunks of classes; no gradient.

    Equal logits may come in any order, or be left out, as with torch.topk. How many classes a chunk
    has depends on the number of rows B, so torch.export with a dynamic batch gives a graph for one
    way to chunk: for C > 1024, trace with at most 2^22 / C rows, and it serves all such batches.

    Args:
        input: [*, D].
        weight: [C, D].
        k: 1 to C, or to C - 1 with a padding_idx.
        bias: [C] or None.
        temperature: divides the logits. Default 1.
        softcap, cosine: as in `logits`.
        padding_idx: a class that is not ranked. None: all are.

    Returns:
        `TopK(values [*, k], indices [*, k])`, sorted by falling value; values are as `logits`.

    Raises:
        ValueError, TypeError: as `sampled_softmax_loss`, and for a k out of range.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> ssc.topk(torch.ones(1), torch.tensor([[1.0], [5.0], [3.0]]), 2).indices
        tensor([1, 2])
    """
    fn = "topk"
    weight, bias = gathered(fn, weight, bias)
    given = _checked_operands(fn, input, weight, bias, temperature, softcap, cosine, padding_idx)
    k = _checks.check_positive_int(fn, "k", k)
    num_classes = weight.shape[0]
    most = num_classes if padding_idx is None else num_classes - 1
    if k > most:
        less = "" if padding_idx is None else " - 1, the padding left out"
        raise ValueError(f"{fn}: k must be at most C={num_classes}{less}, got {k}")
    h = given.h
    chunk = chunk_classes(h.shape[0], num_classes)
    values = h.new_empty((h.shape[0], 0), dtype=compute_dtype(input))
    indices = torch.empty(values.shape, dtype=torch.int64, device=h.device)
    for begin in range(0, num_classes, chunk):
        end = min(begin + chunk, num_classes)
        best = given.logits(bias, begin, end).topk(min(k, end - begin), dim=1)
        values = torch.cat((values, best.values), dim=1)
        indices = torch.cat((indices, best.indices + begin), dim=1)
        values, order = values.topk(min(k, values.shape[1]), dim=1)
        indices = indices.gather(1, order)
    shape = (*input.shape[:-1], k)
    return TopK(values.reshape(shape), indices.reshape(shape))
