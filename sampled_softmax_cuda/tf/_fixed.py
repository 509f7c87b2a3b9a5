"""TensorFlow's sampler of given frequencies, from a list or a vocabulary file."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from .._arguments import as_float, as_int
from ..samplers import WeightedSampler
from ._candidates import (
    CLASSES_IN_MEMORY,
    SampledValues,
    check_range_max,
    draw,
    sampled_values,
)


def _counts_of_file(fn: str, vocab_file: str) -> Tensor:
    """The last entry of each line of a file of comma-separated values, float64 [n].

    Empty lines don't count, as in TensorFlow.
    """
    counts: list[float] = []
    with open(vocab_file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            entry = line.rstrip("\r\n").rpartition(",")[2].strip()
            if not line.strip():
                continue
            try:
                counts.append(float(entry))
            except ValueError:
                raise ValueError(
                    f"{fn}: vocab_file must have a number at the end of every line, got"
                    f" {entry!r} in line {number} of {vocab_file}"
                ) from None
    return torch.tensor(counts, dtype=torch.float64, device="cpu")


def fixed_unigram_sampler(
    range_max: int,
    vocab_file: str | PathLike[str] = "",
    distortion: float = 1.0,
    num_reserved_ids: int = 0,
    num_shards: int = 1,
    shard: int = 0,
    unigrams: Sequence[float] | Tensor = (),
    *,
    device: torch.device | str | None = None,
    persistent: bool = True,
) -> WeightedSampler:
    """The sampler behind `fixed_unigram_candidate_sampler`, built once instead of at every call.

    Args:
        range_max: the number of classes of the sampler, reserved ones included; of its shard, if
            there are several. It is only checked.
        vocab_file: a file whose lines end in a count, after the last comma if there is one.
        distortion: counts are raised to this power. 1 (default) keeps them, 0 makes them equal.
        num_reserved_ids: classes before the first count, which are never drawn.
        num_shards, shard: keep the ids with id % num_shards == shard; what is drawn is the id's
            place among these, id // num_shards.
        unigrams: [n] counts, a list, array or tensor. Exactly one of it and vocab_file.
        device: where draws will be wanted. Default: that of unigrams, or the CPU.
        persistent: whether the state_dict has the table, as of `WeightedSampler`.

    Returns:
        A `WeightedSampler` over the classes.

    Raises:
        ValueError: neither or both sources, a range_max other than the number of classes, a shard
            outside [0, num_shards), a line without a number, weights that are negative or all zero.
            TypeError: sizes that are not integers. OSError: a file that can't be read.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> sampler = ssc.tf.fixed_unigram_sampler(4, num_reserved_ids=1, unigrams=[3, 2, 5])
        >>> sampler.log_prob(torch.arange(4)).exp()
        tensor([0.0000, 0.3000, 0.2000, 0.5000])
    """
    fn = "fixed_unigram_candidate_sampler"
    path = fspath(vocab_file)
    if (len(unigrams) > 0) == (path != ""):
        given = "both" if path else "neither"
        raise ValueError(f"{fn}: exactly one of vocab_file and unigrams must be given, got {given}")
    why = "as in TensorFlow, since every class has a weight in memory"
    range_max = check_range_max(fn, range_max, CLASSES_IN_MEMORY, why)
    num_shards = _checks.check_positive_int(fn, "num_shards", num_shards)
    shard = as_int(fn, "shard", shard)
    distortion = as_float(fn, "distortion", distortion)
    num_reserved_ids = as_int(fn, "num_reserved_ids", num_reserved_ids)
    if num_reserved_ids < 0:
        raise ValueError(f"{fn}: num_reserved_ids must not be negative, got {num_reserved_ids}")
    if not 0 <= shard < num_shards:
        raise ValueError(f"{fn}: shard must be in [0, num_shards={num_shards}), got {shard}")
    if path:
        counts = _counts_of_file(fn, path)
    else:
        # Under a default device of meta a list would lose its values.
        is_tensor = isinstance(unigrams, Tensor)
        counts = torch.as_tensor(unigrams, device=None if is_tensor else "cpu").detach().reshape(-1)
        if device is None:
            device = counts.device if is_tensor else torch.get_default_device()
        counts = counts.to("meta" if counts.is_meta else "cpu", torch.float64)
    num_classes = len(range(shard, num_reserved_ids + counts.shape[0], num_shards))
    if num_classes != range_max:
        raise ValueError(
            f"{fn}: range_max must be the number of classes, {num_classes}, reserved ones"
            f" included, got {range_max}"
        )
    # Distorted before the reserved classes join: they are never drawn, and 0^0 is 1.
    weights = torch.cat((counts.new_zeros(num_reserved_ids), counts.pow(distortion)))
    weights = weights[shard::num_shards]
    return WeightedSampler(weights, persistent=persistent).to(device=device)


def fixed_unigram_candidate_sampler(
    true_classes: Any,
    num_true: int,
    num_sampled: int,
    unique: bool,
    range_max: int,
    vocab_file: str | PathLike[str] = "",
    distortion: float = 1.0,
    num_reserved_ids: int = 0,
    num_shards: int = 1,
    shard: int = 0,
    unigrams: Sequence[float] | Tensor | WeightedSampler = (),
    seed: int | None = None,
    name: str | None = None,
) -> SampledValues:
    """`tf.random.fixed_unigram_candidate_sampler`: classes by given counts.

    Args:
        true_classes, num_true, num_sampled, unique, seed, name: as in `uniform_candidate_sampler`.
        range_max, vocab_file, distortion, num_reserved_ids, num_shards, shard: as in
            `fixed_unigram_sampler`.
        unigrams: [n] counts; or the result of `fixed_unigram_sampler`, which then stands for all of
            vocab_file to shard, and saves building its table, O(C), at every call.

    Returns:
        `SampledValues`; a class that is never drawn has a count of 0.

    Raises:
        ValueError, TypeError, IndexError, OSError: as these two.

    Example:
        >>> import sampled_softmax_cuda as ssc
        >>> ids, true_count, _ = ssc.tf.fixed_unigram_candidate_sampler(
        ...     [[0, 1]], 2, 4, False, 3, unigrams=[4, 0, 1], distortion=0.5)
        >>> true_count, 1 in ids
        (tensor([[2.6667, 0.0000]]), False)
    """
    fn = "fixed_unigram_candidate_sampler"
    device = true_classes.device if isinstance(true_classes, Tensor) else None
    if isinstance(unigrams, WeightedSampler):
        sampler = unigrams
        if sampler.num_classes != range_max:
            raise ValueError(
                f"{fn}: range_max must be the number of classes of the sampler,"
                f" {sampler.num_classes}, got {range_max}"
            )
        device = sampler.table.device
    else:
        sampler = fixed_unigram_sampler(
            range_max,
            vocab_file,
            distortion,
            num_reserved_ids,
            num_shards,
            shard,
            unigrams,
            device=device,
        )
    samples = draw(fn, sampler, true_classes, num_true, num_sampled, unique, seed, device)
    return sampled_values(samples)
