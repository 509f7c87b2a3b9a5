"""TensorFlow's sampled losses and its list of accidental hits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .. import _checks
from .._arguments import as_bool
from .._sparse_checks import check_takes_sparse
from ..functional import sampled_softmax_loss as _sampled_softmax_loss
from ..objectives import ObjectiveName
from ..samplers import Samples
from ._candidates import class_ids, draw_log_uniform, true_class_ids

# An ignore_index that no label has: TensorFlow's rows all count.
_IGNORE_NOTHING = torch.iinfo(torch.int64).min


class AccidentalHits(NamedTuple):
    """The results of `compute_accidental_hits`."""

    indices: Tensor
    """[N] int32, the row of true_classes of each hit."""
    ids: Tensor
    """[N] int64, its position in sampled_candidates."""
    weights: Tensor
    """[N] float32, all -FLT_MAX: what TensorFlow adds to the logit of a hit."""


def compute_accidental_hits(
    true_classes: Any,
    sampled_candidates: Any,
    num_true: int,
    seed: int | None = None,
    name: str | None = None,
) -> AccidentalHits:
    """`tf.nn.compute_accidental_hits`: where a true class of a row is among the samples.

    Every occurrence of a class that was sampled several times is listed; TensorFlow, which
    presupposes unique samples, lists the last one only. The losses of this module don't need it.

    Args:
        true_classes: [B, num_true] int64 or int32.
        sampled_candidates: [S] int64 or int32.
        num_true: T.
        seed, name: ignored.

    Returns:
        `AccidentalHits(indices [N] int32, ids [N] int64, weights [N] float32)`, by rows; their
        number is waited for on CUDA.

    Raises:
        ValueError: true_classes not [B, num_true] or sampled_candidates not [S]. TypeError: ids
            that are not integers.

    Example:
        >>> import sampled_softmax_cuda as ssc
        >>> hits = ssc.tf.compute_accidental_hits([[7, 1], [3, 4]], [3, 9, 1, 3], 2)
        >>> hits.indices.tolist(), hits.ids.tolist()
        ([0, 1, 1], [2, 0, 3])
    """
    fn = "compute_accidental_hits"
    truth = true_class_ids(fn, "true_classes", true_classes, num_true)
    sampled = class_ids(fn, "sampled_candidates", sampled_candidates, truth.device)
    if sampled.dim() != 1:
        raise ValueError(f"{fn}: sampled_candidates must be [S], got {list(sampled.shape)}")
    # By sorting, so that nothing of the size B T S is stored.
    order = sampled.argsort(stable=True)
    ascending = sampled[order]
    flat = truth.reshape(-1)
    first = torch.searchsorted(ascending, flat)
    number = torch.searchsorted(ascending, flat, right=True) - first
    entry = torch.arange(flat.numel(), device=flat.device).repeat_interleave(number)
    place = torch.arange(entry.numel(), device=flat.device)
    place = place - (number.cumsum(0) - number)[entry] + first[entry]
    lowest = torch.finfo(torch.float32).min
    weights = torch.full(entry.shape, lowest, dtype=torch.float32, device=flat.device)
    return AccidentalHits((entry // num_true).to(torch.int32), order[place], weights)


def _whole(fn: str, name: str, shards: Any, partition_strategy: str) -> Any:
    """A parameter that may come in shards along the classes, as one tensor."""
    _checks.check_choice(fn, "partition_strategy", partition_strategy, ("div", "mod"))
    if not isinstance(shards, (list, tuple)):
        return shards
    if partition_strategy == "mod" and len(shards) > 1:
        raise ValueError(
            f"{fn}: {name} in {len(shards)} shards must follow partition_strategy='div',"
            " consecutive classes in each, got 'mod'"
        )
    for i, shard in enumerate(shards):
        _checks.check_float(fn, f"{name}[{i}]", shard)
    return torch.cat(tuple(shards))


def _rows_loss(
    fn: str,
    objective: ObjectiveName,
    weights: Any,
    biases: Any,
    labels: Any,
    inputs: Any,
    num_sampled: int,
    num_classes: int,
    num_true: int,
    sampled_values: Any,
    remove_accidental_hits: bool,
    seed: int | None,
    partition_strategy: str,
    sparse_grad: bool,
) -> Tensor:
    """The losses [B] of both functions, with the arguments checked under TensorFlow's names."""
    weight = _whole(fn, "weights", weights, partition_strategy)
    bias = _whole(fn, "biases", biases, partition_strategy)
    for name, value in (("weights", weight), ("biases", bias), ("inputs", inputs)):
        _checks.check_float(fn, name, value)
    if inputs.dim() != 2:
        raise ValueError(f"{fn}: inputs must be [B, D], got {list(inputs.shape)}")
    num_sampled = _checks.check_positive_int(fn, "num_sampled", num_sampled)
    num_classes = _checks.check_positive_int(fn, "num_classes", num_classes)
    if weight.dim() != 2 or weight.shape[0] < num_classes:
        raise ValueError(
            f"{fn}: weights must be [num_classes={num_classes}, D={inputs.shape[1]}], got"
            f" {list(weight.shape)}"
        )
    _checks.check_parameters(fn, inputs, weight, bias)
    if sparse_grad:
        check_takes_sparse(fn, "weights", weight)
        check_takes_sparse(fn, "biases", bias)
    truth = true_class_ids(fn, "labels", labels, num_true, inputs.device, cast=True)
    if truth.shape[0] != inputs.shape[0]:
        raise ValueError(
            f"{fn}: labels must be [B={inputs.shape[0]}, num_true={num_true}] to match inputs"
            f" {list(inputs.shape)}, got {list(truth.shape)}"
        )
    _checks.check_device(fn, "labels", truth, inputs)
    _checks.check_id_range(fn, "labels", truth, num_classes)
    if sampled_values is None:
        samples = draw_log_uniform(truth, num_true, num_sampled, True, num_classes, seed)
    else:
        samples = _samples(fn, sampled_values, truth, num_sampled)
    if num_true == 1:  # one target per row is what the fused kernels take
        assert samples.target_log_expected_count is not None
        count = samples.target_log_expected_count.squeeze(1)
        samples = replace(samples, target_log_expected_count=count)
        truth = truth.squeeze(1)
    rows: Tensor = _sampled_softmax_loss(
        inputs,
        weight,
        truth,
        samples,
        bias=bias,
        remove_accidental_hits=as_bool(fn, "remove_accidental_hits", remove_accidental_hits),
        ignore_index=_IGNORE_NOTHING,
        reduction="none",
        sparse_grad=sparse_grad,
        objective=objective,
    )
    return rows


def _samples(fn: str, sampled_values: Any, truth: Tensor, num_sampled: int) -> Samples:
    """`sampled_values` as `Samples`; no gradient flows through it.

    As in TensorFlow the counts are broadcast, to the logits that they correct: those of the true
    classes to [B, T], those of the samples to [B, S], where rows may then differ.
    """
    if not isinstance(sampled_values, Sequence) or len(sampled_values) != 3:
        raise TypeError(
            f"{fn}: sampled_values must be (sampled_candidates, true_expected_count,"
            f" sampled_expected_count), got {_checks._describe(sampled_values)}"
        )
    ids = class_ids(fn, "sampled_candidates", sampled_values[0], truth.device, cast=True)
    if ids.shape != (num_sampled,):
        raise ValueError(
            f"{fn}: sampled_values' sampled_candidates must be {[num_sampled]}, got"
            f" {list(ids.shape)}"
        )
    true_count, count = (
        _count(torch.as_tensor(value, device=truth.device)) for value in sampled_values[1:]
    )
    true_count = _broadcast(fn, "true_expected_count", true_count, truth.shape)
    rows = count.dim() == 2 and count.shape[0] > 1
    shape = (truth.shape[0], num_sampled)
    count = _broadcast(fn, "sampled_expected_count", count, shape)
    if rows:
        ids = ids.expand(shape)
    else:
        count = count[0] if shape[0] > 0 else count.new_ones(num_sampled)
    return Samples(ids, count.log(), true_count.log())


def _broadcast(fn: str, name: str, count: Tensor, shape: Sequence[int]) -> Tensor:
    """A count of the shape that it has to have."""
    try:
        return count.expand(*shape)
    except RuntimeError:
        raise ValueError(
            f"{fn}: sampled_values' {name} must be {list(shape)}, or broadcast to it, got"
            f" {list(count.shape)}"
        ) from None


def _count(value: Tensor) -> Tensor:
    """An expected count in float32, or in the float64 that it came in."""
    return value.detach().to(torch.promote_types(value.dtype, torch.float32))


def sampled_softmax_loss(
    weights: Tensor | Sequence[Tensor],
    biases: Tensor | Sequence[Tensor],
    labels: Any,
    inputs: Tensor,
    num_sampled: int,
    num_classes: int,
    num_true: int = 1,
    sampled_values: Any = None,
    remove_accidental_hits: bool = True,
    seed: int | None = None,
    name: str = "sampled_softmax_loss",
    *,
    partition_strategy: Literal["div", "mod"] = "div",
    sparse_grad: bool = False,
) -> Tensor:
    """`tf.nn.sampled_softmax_loss`: the cross entropy of each row over its labels and the samples.

    With z = inputs · weights + biases - log(expected count), and the T labels of a row sharing the
    target probability:

        loss = log(sum over labels and samples of exp z) - mean over labels of z

    Samples that equal one of the row's labels are left out, all of them if a class was sampled
    several times; TensorFlow leaves out the last one only. Where the expected count is 0 nothing is
    subtracted; TensorFlow's loss is NaN then.
    Method: Jean et al., "On Using Very Large Target Vocabulary for Neural Machine Translation".

    Args:
        weights: [C, D] floating point; or a list of tensors that together are it, which are put
            together at every call, O(C D).
        biases: [C], or a list as weights.
        labels: [B, num_true], a tensor, an array or lists, of any real dtype: cast to int64.
        inputs: [B, D] floating point.
        num_sampled: S, classes drawn for the whole batch.
        num_classes: C; weights may have more rows, which are never drawn.
        num_true: T, labels per row. Default 1, which is what the fused kernels are made for.
        sampled_values: what a candidate sampler returned, or (sampled_candidates [S],
            true_expected_count, sampled_expected_count), counts that broadcast to [B, num_true] and
            to [S] or [B, S]. None (default) draws
            `log_uniform_candidate_sampler(labels, num_true, num_sampled, True, num_classes, seed)`.
        remove_accidental_hits: leave out samples that equal a label of the row. Default True.
        seed: of that draw; see `uniform_candidate_sampler`.
        name: ignored.
        partition_strategy: how lists of weights and biases divide the classes; "div" (default), as
            in TensorFlow 2. "mod" is accepted for a single tensor.
        sparse_grad: gradients of weights and biases as sparse_coo tensors over the rows touched,
            the counterpart of TensorFlow's IndexedSlices. Default False: dense.

    Returns:
        [B] losses, in the dtype that inputs, weights and biases promote to.

    Raises:
        ValueError: shapes, sizes or options that do not fit. TypeError: wrong dtypes or types.
            IndexError: a label outside [0, C), on the CPU.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> weights, biases = torch.randn(1000, 16, requires_grad=True), torch.zeros(1000)
        >>> labels, inputs = torch.randint(1000, (32, 1)), torch.randn(32, 16)
        >>> loss = ssc.tf.sampled_softmax_loss(weights, biases, labels, inputs, 64, 1000)
        >>> loss.mean().backward()
        >>> loss.shape, weights.grad.shape
        (torch.Size([32]), torch.Size([1000, 16]))
    """
    return _rows_loss(
        "sampled_softmax_loss",
        "softmax",
        weights,
        biases,
        labels,
        inputs,
        num_sampled,
        num_classes,
        num_true,
        sampled_values,
        remove_accidental_hits,
        seed,
        partition_strategy,
        sparse_grad,
    )


def nce_loss(
    weights: Tensor | Sequence[Tensor],
    biases: Tensor | Sequence[Tensor],
    labels: Any,
    inputs: Tensor,
    num_sampled: int,
    num_classes: int,
    num_true: int = 1,
    sampled_values: Any = None,
    remove_accidental_hits: bool = False,
    name: str = "nce_loss",
    *,
    partition_strategy: Literal["div", "mod"] = "div",
    sparse_grad: bool = False,
) -> Tensor:
    """`tf.nn.nce_loss`: noise-contrastive estimation, by sigmoid cross entropies.

    With z = inputs · weights + biases - log(expected count), the sum over the row's labels of the
    cross entropy of sigmoid(z) with 1 / T, and over the samples of that with 0. Accidental hits
    count, by default. An expected count of 0 is as in `sampled_softmax_loss`.
    Method: Gutmann and Hyvärinen, "Noise-contrastive estimation: A new estimation principle for
    unnormalized statistical models", AISTATS 2010.

    Args:
        weights, biases, labels, inputs, num_sampled, num_classes: as in `sampled_softmax_loss`.
        num_true, sampled_values, partition_strategy, sparse_grad: likewise.
        remove_accidental_hits: as there, but False by default. True makes it the "sampled logistic"
            loss.
        name: ignored. There is no seed, as in TensorFlow: `set_seed`, or give sampled_values.

    Returns:
        [B] losses, in the dtype that inputs, weights and biases promote to.

    Raises:
        ValueError, TypeError, IndexError: as `sampled_softmax_loss`.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> weights, biases = torch.zeros(4, 2), torch.zeros(4)
        >>> values = ssc.tf.all_candidate_sampler([[1]], 1, 4, True)
        >>> ssc.tf.nce_loss(weights, biases, [[1]], torch.ones(1, 2), 4, 4, 1, values)  # 5 log 2
        tensor([3.4657])
    """
    return _rows_loss(
        "nce_loss",
        "nce",
        weights,
        biases,
        labels,
        inputs,
        num_sampled,
        num_classes,
        num_true,
        sampled_values,
        remove_accidental_hits,
        None,
        partition_strategy,
        sparse_grad,
    )
