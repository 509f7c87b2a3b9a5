"""TensorFlow's candidate samplers that need no table: uniform, log-uniform, all classes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _checks
from .._arguments import as_bool
from ..ops import sample as ops
from ..proposals import Kind
from ..samplers import LogUniformSampler, Samples, UniformSampler
from ..samplers.base import DrawOptions
from ..samplers.keyed import KeyedSampler
from ._seeds import draw_key


class SampledValues(NamedTuple):
    """The results of a candidate sampler, which the losses take as `sampled_values`."""

    sampled_candidates: Tensor
    """[S] int64 class ids."""
    true_expected_count: Tensor
    """[B, T] float32, how often each true class is expected among the samples."""
    sampled_expected_count: Tensor
    """[S] float32, the same for the samples."""


# TensorFlow counts classes whose samplers need memory for each in int32, and allows less than this.
CLASSES_IN_MEMORY = 2**31 - 1


def check_range_max(fn: str, range_max: Any, limit: int, why: str, name: str = "range_max") -> int:
    """range_max as an int in [1, limit)."""
    number = _checks.check_positive_int(fn, name, range_max)
    if number >= limit:
        raise ValueError(f"{fn}: {name} must be below {limit}, {why}, got {number}")
    return number


def class_ids(
    fn: str, name: str, ids: Any, device: torch.device | None = None, *, cast: bool = False
) -> Tensor:
    """int64 ids from a tensor, an array or a list of int32 or int64.

    Args:
        device: where ids that are not a tensor go.
        cast: whether other numbers are converted, as the losses of TensorFlow do.
    """
    tensor = ids if isinstance(ids, Tensor) else torch.as_tensor(ids, device=device)
    integers = tensor.dtype in (torch.int32, torch.int64) or tensor.numel() == 0
    if tensor.is_complex() or not (cast or integers):
        allowed = "real numbers" if cast else "int32 or int64"
        raise TypeError(f"{fn}: {name} must be {allowed}, got {tensor.dtype}")
    return tensor.to(torch.int64)


def true_class_ids(
    fn: str,
    name: str,
    ids: Any,
    num_true: int,
    device: torch.device | None = None,
    *,
    cast: bool = False,
) -> Tensor:
    """True classes as int64 [B, num_true]."""
    num_true = _checks.check_positive_int(fn, "num_true", num_true)
    tensor = class_ids(fn, name, ids, device, cast=cast)
    if tensor.dim() != 2 or tensor.shape[1] != num_true:
        column = tensor.dim() == 1 and num_true == 1
        raise ValueError(
            f"{fn}: {name} must be [B, num_true={num_true}], got {list(tensor.shape)}"
            f"{f': pass {name}[:, None]' if column else ''}"
        )
    return tensor


def check_sizes(
    fn: str, num_sampled: Any, unique: Any, range_max: int, drawable: int
) -> tuple[int, bool]:
    """num_sampled, which fits into the classes that can be drawn, and unique."""
    num_sampled = _checks.check_positive_int(fn, "num_sampled", num_sampled)
    unique = as_bool(fn, "unique", unique)
    if unique and num_sampled > drawable:
        raise ValueError(
            f"{fn}: num_sampled must be at most {drawable}, the number of classes of"
            f" range_max={range_max} that can be drawn, when unique=True; got {num_sampled}"
        )
    return num_sampled, unique


def expected_count(q: Tensor, num_sampled: int, num_tries: Tensor) -> Tensor:
    """TensorFlow's expected count of classes of probability q, float32.

    S q if the sample took S tries, also where its classes are unique; else 1 - (1 - q)^tries.

    Args:
        q: float64 of any shape.
        num_sampled: S.
        num_tries: int64 [].
    """
    seen = -torch.expm1(num_tries * torch.log1p(-q))
    return torch.where(num_tries == num_sampled, num_sampled * q, seen).to(torch.float32)


def draw(
    fn: str,
    sampler: KeyedSampler,
    true_classes: Any,
    num_true: int,
    num_sampled: int,
    unique: bool,
    seed: int | None,
    device: torch.device | None = None,
) -> Samples:
    """A draw from a sampler, with the logarithms of TensorFlow's counts, as of `expected_count`."""
    truth = true_class_ids(fn, "true_classes", true_classes, num_true, device)
    num_classes = sampler.num_classes
    num_sampled, unique = check_sizes(fn, num_sampled, unique, num_classes, sampler.num_drawable)
    _checks.check_id_range(fn, "true_classes", truth, num_classes)
    key = draw_key(fn, seed, (truth.shape[1], num_sampled, unique, num_classes), truth.device)
    proposal = sampler._proposal()
    plan = sampler._plan(DrawOptions(num_sampled, not unique, "observed"))
    truth = truth.contiguous()
    ids, num_tries, *log_counts = ops.sample(proposal, key, truth, num_sampled, *plan)
    if proposal.kind == Kind.WEIGHTED:  # the count of a class that is never drawn is 0 here
        tries = num_tries.to(torch.float64) if unique else None
        log_counts[1] = ops.log_counts(proposal, truth, num_sampled, tries)
    # Where the number of tries may be looked at, most draws need no other counts.
    if unique and not (_checks.may_read(num_tries) and int(num_tries) > num_sampled):
        plain = (ops.log_counts(proposal, k, num_sampled, None) for k in (ids, truth))
        log_counts = [
            torch.where(num_tries == num_sampled, first, other)
            for first, other in zip(plain, log_counts, strict=True)
        ]
    return Samples(ids, *log_counts)


def sampled_values(samples: Samples) -> SampledValues:
    """The counts themselves."""
    log_count, true_log_count = samples.log_expected_count, samples.target_log_expected_count
    assert log_count is not None and true_log_count is not None
    return SampledValues(samples.ids, true_log_count.exp(), log_count.exp())


# Samplers by kind and size, kept because they find out only once how to draw unique classes.
_samplers: dict[tuple[str, int], KeyedSampler] = {}
_KINDS: dict[str, type[UniformSampler | LogUniformSampler]] = {
    "uniform": UniformSampler,
    "log_uniform": LogUniformSampler,
}


# A module can't be made in a graph: torch.compile runs this while it traces, before it looks at the
# samplers that the graph will depend on.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _keep(kind: str, range_max: int) -> bool:
    if (kind, range_max) not in _samplers:
        _samplers[kind, range_max] = _KINDS[kind](range_max)
    return True


def _shared(kind: str, range_max: int) -> KeyedSampler:
    _keep(kind, range_max)
    return _samplers[kind, range_max]


def uniform_candidate_sampler(
    true_classes: Any,
    num_true: int,
    num_sampled: int,
    unique: bool,
    range_max: int,
    seed: int | None = None,
    name: str | None = None,
) -> SampledValues:
    """`tf.random.uniform_candidate_sampler`: every class with probability 1 / range_max.

    Args:
        true_classes: [B, num_true] int64 or int32, a tensor, an array or lists: the classes whose
            expected counts are wanted; they are not left out of the sample. Its device, if it is a
            tensor, is where the results are; else the CPU.
        num_true: T, at least 1.
        num_sampled: S, at least 1, and at most range_max if unique.
        unique: distinct classes if True; independent draws if False.
        range_max: C, the number of classes.
        seed: names a stream of draws, whose next one this is; None (default) draws from torch's
            default generator.
        name: ignored.

    Returns:
        `SampledValues(sampled_candidates [S] int64, true_expected_count [B, T] float32,
        sampled_expected_count [S] float32)`. A class of probability q is expected S q times with
        duplicates, and with t tries -expm1(t log1p(-q)) times without, as in TensorFlow, where t is
        the number of tries of this very draw; S q again if that was S.

    Raises:
        ValueError: true_classes not [B, num_true], sizes below 1, S above C with unique=True, a
            seed under torch.compile. TypeError: ids or sizes that are not integers. IndexError: a
            true class outside [0, range_max), on the CPU.

    Example:
        >>> import sampled_softmax_cuda as ssc
        >>> ids, true_count, count = ssc.tf.uniform_candidate_sampler([[1, 2]], 2, 4, False, 8)
        >>> ids.shape, true_count, count
        (torch.Size([4]), tensor([[0.5000, 0.5000]]), tensor([0.5000, 0.5000, 0.5000, 0.5000]))
    """
    fn = "uniform_candidate_sampler"
    range_max = check_range_max(fn, range_max, 2**63, "the number of int64 ids")
    sampler = _shared("uniform", range_max)
    samples = draw(fn, sampler, true_classes, num_true, num_sampled, unique, seed)
    return sampled_values(samples)


def log_uniform_candidate_sampler(
    true_classes: Any,
    num_true: int,
    num_sampled: int,
    unique: bool,
    range_max: int,
    seed: int | None = None,
    name: str | None = None,
) -> SampledValues:
    """`tf.random.log_uniform_candidate_sampler`: q = log((k + 2) / (k + 1)) / log(range_max + 1).

    For classes sorted by falling frequency.

    Args:
        true_classes, num_true, num_sampled, unique, range_max, seed, name: as in
            `uniform_candidate_sampler`.

    Returns:
        `SampledValues`, as there.

    Raises:
        ValueError, TypeError, IndexError: as there.

    Example:
        >>> import sampled_softmax_cuda as ssc
        >>> ids, true_count, _ = ssc.tf.log_uniform_candidate_sampler([[0, 1]], 2, 3, False, 3)
        >>> true_count
        tensor([[1.5000, 0.8774]])
    """
    samples = draw_log_uniform(true_classes, num_true, num_sampled, unique, range_max, seed)
    return sampled_values(samples)


def draw_log_uniform(
    true_classes: Any,
    num_true: int,
    num_sampled: int,
    unique: bool,
    range_max: int,
    seed: int | None,
) -> Samples:
    """`log_uniform_candidate_sampler` with the logarithms of its counts."""
    fn = "log_uniform_candidate_sampler"
    range_max = check_range_max(fn, range_max, 2**52, "up to which draws are exact")
    sampler = _shared("log_uniform", range_max)
    return draw(fn, sampler, true_classes, num_true, num_sampled, unique, seed)


def all_candidate_sampler(
    true_classes: Any,
    num_true: int,
    num_sampled: int,
    unique: bool,
    seed: int | None = None,
    name: str | None = None,
) -> SampledValues:
    """`tf.random.all_candidate_sampler`: the classes 0 .. num_sampled - 1, each expected once.

    With it, and with accidental hits removed, `sampled_softmax_loss` is the full cross entropy.

    Args:
        true_classes, num_true: as in `uniform_candidate_sampler`.
        num_sampled: C, the number of classes.
        unique, seed, name: ignored.

    Returns:
        `SampledValues`; all counts are 1.

    Raises:
        ValueError, TypeError, IndexError: as `uniform_candidate_sampler`.

    Example:
        >>> import sampled_softmax_cuda as ssc
        >>> ssc.tf.all_candidate_sampler([[1]], 1, 3, True)[0]
        tensor([0, 1, 2])
    """
    fn = "all_candidate_sampler"
    truth = true_class_ids(fn, "true_classes", true_classes, num_true)
    num_sampled = check_range_max(
        fn, num_sampled, CLASSES_IN_MEMORY, "since all classes are listed", "num_sampled"
    )
    _checks.check_id_range(fn, "true_classes", truth, num_sampled)
    ids = torch.arange(num_sampled, device=truth.device)
    counts = (torch.ones_like(k, dtype=torch.float32) for k in (truth, ids))
    return SampledValues(ids, *counts)
