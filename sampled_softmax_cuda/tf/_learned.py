"""TensorFlow's sampler that learns the frequencies of the classes from the targets it sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _checks
from .._arguments import check_int64
from .._philox import mul_wide
from .._torchscript import NotScriptable
from ..ops.sample import Stream, draw_ids
from ..proposals import Method
from ..samplers._state import Stateful
from ._candidates import (
    CLASSES_IN_MEMORY,
    SampledValues,
    check_range_max,
    check_sizes,
    expected_count,
    true_class_ids,
)
from ._seeds import draw_key

# Unique classes are drawn by rejection, unless that would need more tries per class than this.
_TRIES_PER_CLASS = 4
_WHY = "as in TensorFlow, since every class has a count in memory"


class _Counts(NamedTuple):
    """q = count / total, as a `Distribution` of `reference.distributions`."""

    counts: Tensor
    total: int

    @property
    def num_classes(self) -> int:
        return self.counts.shape[0]

    def ids(self, bits: Tensor) -> Tensor:
        place = mul_wide(bits, self.total)[0]
        ids = torch.searchsorted(self.counts.cumsum(0), place, right=True)
        return ids.clamp(max=self.num_classes - 1)

    def probability(self, ids: Tensor) -> Tensor:
        return self.counts[ids].double() / self.total


class LearnedUnigram(NotScriptable, Stateful):
    """The state of `learned_unigram_candidate_sampler`: how often each class was a target, plus 1.

    A module, so that it can be saved with a model, which TensorFlow doesn't do with its own. A draw
    takes time O(C), for sums of all counts.

    Args:
        range_max: C, the number of classes.
        persistent: whether the state_dict has the counts. Default True.

    Raises:
        ValueError, TypeError: range_max is not a positive int, persistent no bool.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> state = ssc.tf.LearnedUnigram(3)
        >>> state.observe(torch.tensor([[2], [2]]))
        >>> state.counts
        tensor([1, 1, 3])
    """

    _STATE = ("counts",)

    counts: Tensor
    """[C] int64, 1 + the number of times that each class was observed."""

    def __init__(self, range_max: int, *, persistent: bool = True) -> None:
        super().__init__()
        range_max = check_range_max("LearnedUnigram", range_max, CLASSES_IN_MEMORY, _WHY)
        ones = torch.ones(range_max, dtype=torch.int64, device="cpu")
        self._set_state(torch.get_default_device(), persistent, counts=ones)
        self._total = range_max  # the counts' sum, without asking a device for it
        self._stamp()

    @property
    def num_classes(self) -> int:
        """C."""
        return self.counts.shape[0]

    def observe(self, classes: Tensor) -> None:
        """Count classes, int64 of any shape in [0, C), once for each time they are there.

        Raises:
            TypeError: classes that are not int64. IndexError: one outside [0, C), on the CPU; on
                CUDA it counts for the first or the last class.
        """
        check_int64("LearnedUnigram.observe", "classes", classes)
        _checks.check_id_range("LearnedUnigram.observe", "classes", classes, self.num_classes)
        flat = classes.reshape(-1).clamp(0, self.num_classes - 1)
        known = self._unchanged()
        self.counts.index_add_(0, flat, torch.ones_like(flat))
        if known:
            self._total += flat.numel()
            self._stamp()

    def draw(self, key: Tensor, num_sampled: int, unique: bool) -> tuple[Tensor, Tensor]:
        """The ids [S] of a key int64 [2], and the number of tries [] that they took."""
        self._settle()
        stream = Stream(_Counts(self.counts, self._total), key)
        if not unique:
            return draw_ids(stream, num_sampled, Method.WITH_REPLACEMENT)
        log_miss = torch.log1p(-self.counts.double() / self._total)
        found = -torch.expm1(_TRIES_PER_CLASS * self.num_classes * log_miss).sum()
        method = Method.DISTINCT if float(found) > num_sampled else Method.RACE
        return draw_ids(stream, num_sampled, method)

    def probability(self, classes: Tensor) -> Tensor:
        """q of classes in [0, C), float64 of their shape; of others, that of the nearest."""
        self._settle()
        known = classes.clamp(0, self.num_classes - 1)
        return _Counts(self.counts, self._total).probability(known)

    def extra_repr(self) -> str:
        return f"range_max={self.num_classes}"

    def _derive(self, values: Mapping[str, Any]) -> dict[str, Any]:
        counts = values["counts"]
        least, total = torch.stack((counts.min(), counts.sum())).tolist()
        if least < 0 or total <= 0:
            raise ValueError(
                "counts must not be negative and have a positive sum, got a least one of"
                f" {least} and a sum of {total}"
            )
        return {"_total": total}


# TensorFlow keeps a state in each operator; here an operator is known by its name.
_states: dict[tuple[str | None, int, torch.device], LearnedUnigram] = {}


@torch.compiler.disable  # type: ignore[untyped-decorator]
def learned_unigram_candidate_sampler(
    true_classes: Any,
    num_true: int,
    num_sampled: int,
    unique: bool,
    range_max: int,
    seed: int | None = None,
    name: str | None = None,
    *,
    state: LearnedUnigram | None = None,
) -> SampledValues:
    """`tf.random.learned_unigram_candidate_sampler`: classes by how often they were targets so far.

    Every class begins with a count of 1, and counts one more for each time that it is among
    true_classes, after the draw: a batch is sampled by what earlier calls have seen. On CUDA,
    unique=True waits for the device.

    Args:
        true_classes, num_true, num_sampled, unique, range_max, seed: as in
            `uniform_candidate_sampler`.
        name: calls with the same name, range_max and device share their counts, from the start of
            the program on. (In TensorFlow it is the operator that has them.)
        state: counts that the caller owns, on the device of true_classes. None (default) means
            those of the name. `StreamingSampler` learns too, in time that does not grow with C.

    Returns:
        `SampledValues`.

    Raises:
        ValueError, TypeError, IndexError: as `uniform_candidate_sampler`, and for a state that does
            not fit range_max or the device.

    Example:
        >>> import sampled_softmax_cuda as ssc
        >>> state = ssc.tf.LearnedUnigram(4)
        >>> for _ in range(2):
        ...     _, true_count, _ = ssc.tf.learned_unigram_candidate_sampler(
        ...         [[0, 1], [0, 2]], 2, 2, False, 4, state=state)
        ...     true_count
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
        tensor([[0.7500, 0.5000],
                [0.7500, 0.5000]])
    """
    fn = "learned_unigram_candidate_sampler"
    range_max = check_range_max(fn, range_max, CLASSES_IN_MEMORY, _WHY)
    device = None if state is None else state.counts.device
    truth = true_class_ids(fn, "true_classes", true_classes, num_true, device)
    num_sampled, unique = check_sizes(fn, num_sampled, unique, range_max, range_max)
    _checks.check_id_range(fn, "true_classes", truth, range_max)
    if state is None:
        owner = (name, range_max, truth.device)
        if owner not in _states:
            _states[owner] = LearnedUnigram(range_max).to(truth.device)
        state = _states[owner]
    if state.num_classes != range_max:
        raise ValueError(
            f"{fn}: range_max must be the number of classes of state, {state.num_classes}, got"
            f" {range_max}"
        )
    if truth.device != state.counts.device:
        raise ValueError(
            f"{fn}: true_classes must be on the device of state, {state.counts.device}, got"
            f" {truth.device}"
        )
    key = draw_key(fn, seed, (truth.shape[1], num_sampled, unique, range_max), truth.device)
    ids, num_tries = state.draw(key, num_sampled, unique)
    counts = (expected_count(state.probability(k), num_sampled, num_tries) for k in (truth, ids))
    values = SampledValues(ids, *counts)
    state.observe(truth)
    return values
