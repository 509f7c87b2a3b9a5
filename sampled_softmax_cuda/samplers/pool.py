"""Negatives from ids that are there anyway: the targets of this batch, and of those before it.

The other rows' targets are draws from the distribution of the targets, at no cost: Hidasi et al.,
"Session-based Recommendations with Recurrent Neural Networks" (2016); the correction for their
frequency is that of Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
Recommendations" (2019); the queue of earlier batches that of Wang et al., "Cross-Batch Negative
Sampling for Training Two-Tower Recommenders" (2021), where ids suffice, since classes have rows of
their own in the weight matrix and are never stale.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .._arguments import as_bool, as_int
from .._checks import check_padding_idx
from ..ops import sample as ops
from ..options import Inclusion
from ..proposals import Method, uniform
from .base import ANY_CLASSES, Draw, DrawOptions, Sampler, check_num_classes
from .pooled import Learner, PooledSampler, check_ignore_index, is_class

_LAST = 2**63 - 1  # sorts behind every id


class PoolSampler(PooledSampler):
    """Takes ids from a pool that holds the batch's own targets among others.

    With `log_q`: the N ids of the pool are N draws from q. A row's own target is a hit, which the
    loss leaves out; for every other class the row sees N - 1 draws, so that n_k = (N - 1) q_k, or
    1 - (1 - q_k)^(N - 1) if repeats are left out. Without: n_k is the number of times that class k
    is in the pool, or 1 if repeats are left out; every class of the pool then weighs the same.
    """

    def __init__(
        self,
        log_q: Sampler | None,
        num_classes: int | None,
        ignore_index: int,
        padding_idx: int | None,
    ) -> None:
        super().__init__()
        name = self._name
        if log_q is not None and not isinstance(log_q, Sampler):
            raise TypeError(
                f"{name}: log_q must be a Sampler, whose log_prob is used, or None, got"
                f" {type(log_q).__name__}; for probabilities [C] use WeightedSampler(probabilities)"
            )
        self.ignore_index = check_ignore_index(name, ignore_index)
        if num_classes is not None:
            num_classes = check_num_classes(name, num_classes, ANY_CLASSES)
        known = ANY_CLASSES if log_q is None else log_q.num_classes
        if num_classes is not None and known not in (num_classes, ANY_CLASSES):
            raise ValueError(
                f"{name}: num_classes must be that of log_q, {known}, or None, got {num_classes}"
            )
        self.log_q = log_q
        self.num_classes = known if num_classes is None else num_classes
        if padding_idx is not None:
            self.padding_idx = check_padding_idx(name, padding_idx, self.num_classes)

    _resampling = False

    @contextmanager
    def _resampled(self) -> Iterator[None]:
        """Meanwhile a pool is as many draws from itself: another batch, as far as one can tell."""
        self._resampling = True
        try:
            yield
        finally:
            self._resampling = False

    @abstractmethod
    def _pool(self, target: Tensor) -> Tensor:
        """The ids of the pool [N], the targets included; ids that are no classes don't count."""

    def log_prob(self, ids: Tensor) -> Tensor:
        """log q of each id by `log_q`, float32 of their shape; -inf for q = 0.

        Raises:
            ValueError: there is no log_q. IndexError, TypeError: as `Sampler.log_prob`.
        """
        return self._known_q("log_prob").log_prob(ids)

    def log_expected_count(
        self,
        ids: Tensor,
        num_samples: int,
        *,
        replacement: bool = True,
        inclusion: Inclusion = "expected",
    ) -> Tensor:
        """log n of each class among num_samples targets of other rows, by `log_q`.

        -inf for a class with q = 0, for which `sample` gives 0: nothing to correct.

        Raises:
            ValueError: there is no log_q. IndexError, TypeError: as `Sampler.log_expected_count`.
        """
        log_q = self._known_q("log_expected_count").log_prob(ids)
        num_samples = self._check_num_samples(
            "log_expected_count", num_samples, replacement, inclusion
        )
        tries = torch.tensor(num_samples, dtype=torch.float64, device=ids.device)
        return _log_count(log_q, tries, replacement).to(torch.float32)

    def extra_repr(self) -> str:
        classes = "any" if self.num_classes == ANY_CLASSES else str(self.num_classes)
        return f"num_classes={classes}, ignore_index={self.ignore_index}"

    def _known_q(self, method: str) -> Sampler:
        if self.log_q is None:
            raise ValueError(
                f"{self._name}.{method} needs log_q=, a sampler that knows the probabilities:"
                " without it the pool's own counts serve, which exist only together with a draw"
            )
        return self.log_q

    def _check_num_samples(
        self, method: str, num_samples: Any, replacement: bool, inclusion: str
    ) -> int:
        as_bool(f"{self._name}.{method}", "replacement", replacement)
        # Any number is enough: it is the most that is taken from the pool.
        return super()._check_num_samples(method, num_samples, True, inclusion)

    def _device(self) -> torch.device | None:
        return None if self.log_q is None else self.log_q._device()

    def _is_class(self, ids: Tensor) -> Tensor:
        return is_class(ids, self.num_classes, self.padding_idx, self.ignore_index)

    def _capacity(self, target: Tensor, replacement: bool) -> int:
        return max(1, target.numel())

    def _begin_draw(
        self,
        target: Tensor,
        options: DrawOptions,
        generator: torch.Generator | None,
    ) -> Draw:
        num_samples, replacement = options.num_samples, options.replacement
        pool = self._pool(target)
        if pool.shape[0] == 0:  # an empty batch still has one sample, which counts for nothing
            pool = pool.new_full((1,), -1)
        valid = self._is_class(pool)
        if self._resampling:
            there = pool[valid]
            picks = torch.randint(
                max(1, there.numel()), there.shape, device=pool.device, generator=generator
            )
            pool = pool.masked_scatter(valid, there[picks])
        num_valid = valid.sum().to(torch.float64)
        chosen, counted, num_chosen = pool, valid, num_valid
        if num_samples < pool.shape[0]:
            # The ids of the smallest random numbers, those that are no classes last.
            key = self._new_key(target, generator)
            place, _, _, _ = ops.sample(
                uniform(_LAST), key, key[:0], pool.shape[0], Method.WITH_REPLACEMENT, None
            )
            place = torch.where(valid, place, _LAST)
            picks = place.topk(num_samples, largest=False).indices
            chosen, counted = pool[picks], valid[picks]
            num_chosen = num_valid.clamp(max=num_samples)
        masked = ~counted
        if not replacement:
            masked = masked | _repeated(torch.where(counted, chosen, _LAST))
        # A masked entry takes an id that is there anyway: no other row of W is touched.
        ids = torch.where(counted, chosen, torch.where(valid, pool, 0).amax())
        if self.log_q is None:
            there = torch.where(valid, pool, _LAST)
            return Draw(ids, masked, _pool_counts(there, num_valid, num_chosen, replacement))
        share = (num_valid - 1).clamp(min=1) / num_valid.clamp(min=1)
        log_q, tries = self.log_q, num_chosen.clamp(min=1) * share
        return Draw(
            ids, masked, lambda k: _log_count(log_q.log_prob(k.contiguous()), tries, replacement)
        )


def _log_count(log_q: Tensor, tries: Tensor, replacement: bool) -> Tensor:
    """log n of `tries` independent draws, float64; without repeats, of being among them."""
    log_q = log_q.to(torch.float64)
    if replacement:
        return tries.log() + log_q
    return (-torch.expm1(tries * torch.log1p(-log_q.exp()))).log()


def _repeated(ids: Tensor) -> Tensor:
    """Which entries of ids [S] have occurred before."""
    ordered, order = ids.sort(stable=True)
    again = torch.zeros_like(ids, dtype=torch.bool)
    again[1:] = ordered[1:] == ordered[:-1]
    return torch.empty_like(again).scatter_(0, order, again)


def _pool_counts(
    pool: Tensor, num_valid: Tensor, num_chosen: Tensor, replacement: bool
) -> Callable[[Tensor], Tensor]:
    """log n from the counts c in the pool, whose entries _LAST do not count.

    M of the N others are chosen at random. n = c M / N with repeats; without, the chance that one
    of the c is among the M: 1 - binomial(N - c, M) / binomial(N, M).
    """
    ordered = pool.sort().values

    def log_count(ids: Tensor) -> Tensor:
        first = torch.searchsorted(ordered, ids.contiguous())
        last = torch.searchsorted(ordered, ids.contiguous(), right=True)
        c = (last - first).to(torch.float64)
        if replacement:
            return (c * (num_chosen / num_valid.clamp(min=1))).log()
        rest = num_valid - num_chosen + 1
        log_missed = (
            torch.lgamma(num_valid - c + 1)
            - torch.lgamma((rest - c).clamp(min=1))
            + torch.lgamma(rest)
            - torch.lgamma(num_valid + 1)
        )
        n = torch.where(rest - c >= 1, -torch.expm1(log_missed.clamp(max=0)), 1.0)
        return torch.where(c > 0, n, 0.0).log()

    return log_count


class InBatchSampler(PoolSampler):
    """The targets of the batch are its negatives: each row's are those of all other rows.

    `sample(target, num_samples)` takes the batch's targets (all labels of [*, T]; entries that are
    no class are masked), or a random num_samples of them if there are more. replacement=False
    leaves out repeats; `inclusion` has no meaning here.

    How often class k is expected in the batch comes from `log_q`:

    - a Sampler whose log_prob knows how frequent classes are as targets, such as a
      `WeightedSampler` of their counts or a `StreamingSampler`: n_k = (B - 1) q_k, exact for every
      row, whose own target is left out as a hit;
    - None: the batch's own counts. Every class of the batch then weighs the same.

    Args:
        log_q: as above; its own draws are not used.
        num_classes: C; that of log_q if None, and without log_q any.
        ignore_index: a target that doesn't count, as in the loss.
        padding_idx: a class that is no class, as in the loss; as a target it is no negative.

    Raises:
        TypeError, ValueError: arguments that are not as above.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> frequencies = ssc.WeightedSampler(torch.tensor([4.0, 3.0, 2.0, 1.0]))
        >>> sampler = ssc.InBatchSampler(frequencies)
        >>> drawn = sampler.sample(torch.tensor([0, 2, -100, 0]), 4)
        >>> drawn.ids, drawn.log_expected_count.exp()  # two other rows: 2 q
        (tensor([0, 2, 2, 0]), tensor([0.8000, 0.4000,    inf, 0.8000]))
    """

    def __init__(
        self,
        log_q: Sampler | None = None,
        *,
        num_classes: int | None = None,
        ignore_index: int = -100,
        padding_idx: int | None = None,
    ) -> None:
        super().__init__(log_q, num_classes, ignore_index, padding_idx)

    def _pool(self, target: Tensor) -> Tensor:
        return target.reshape(-1)


class QueueSampler(PoolSampler, Learner):
    """The targets of the batch and of the batches before it are the negatives.

    A ring buffer keeps the last `capacity` targets, in the state_dict; in training mode `sample`
    adds the batch's after it has drawn. The pool is the batch and the buffer together, otherwise
    everything is as with `InBatchSampler`, which is a queue of capacity 0: `sample` takes the whole
    pool, or a random num_samples of it if it holds more.

    Args:
        capacity: how many earlier targets are kept.
        log_q, num_classes, ignore_index, padding_idx: as in `InBatchSampler`.
        update_on_sample: whether `sample` in training mode adds its targets. Default True.
        persistent: whether the state_dict has the ids. Default True.

    Every process has its own queue, in DistributedDataParallel too.

    Raises:
        TypeError, ValueError: arguments that are not as above.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> sampler = ssc.QueueSampler(4)
        >>> sampler.update(torch.tensor([5, 6, 7, 8, 9]))  # 5 is too old
        >>> sampler.sample(torch.tensor([1]), 5).ids.sort().values
        tensor([1, 6, 7, 8, 9])
    """

    _STATE = ("queue", "num_pushed")

    queue: Tensor
    num_pushed: Tensor

    def __init__(
        self,
        capacity: int,
        log_q: Sampler | None = None,
        *,
        num_classes: int | None = None,
        ignore_index: int = -100,
        padding_idx: int | None = None,
        update_on_sample: bool = True,
        persistent: bool = True,
    ) -> None:
        super().__init__(log_q, num_classes, ignore_index, padding_idx)
        self.capacity = capacity = as_int("QueueSampler", "capacity", capacity, least=1)
        self.update_on_sample = update_on_sample
        # The slot behind the last one takes ids that are not kept: no shape depends on values.
        self._set_state(
            torch.get_default_device(),
            persistent,
            queue=torch.full((capacity + 1,), -1, device="cpu"),
            num_pushed=torch.zeros((), dtype=torch.int64, device="cpu"),
        )

    def update(self, target: Tensor) -> None:
        """Add targets to the queue, the last ones if there are more than its capacity.

        Args:
            target: int64 of any shape; entries that are no class are left out.

        Raises:
            TypeError, ValueError: a target that is not int64, or on another device.
        """
        self._check_ids("update", "target", target)
        ids = target.detach().reshape(-1)
        valid = self._is_class(ids)
        position = self.num_pushed + valid.cumsum(0) - 1
        pushed = self.num_pushed + valid.sum()
        kept = valid & (position >= pushed - self.capacity)
        slot = torch.where(kept, position % self.capacity, self.capacity)
        self.queue.scatter_(0, slot, torch.where(kept, ids, -1))
        self.num_pushed.copy_(pushed)

    def extra_repr(self) -> str:
        return f"capacity={self.capacity}, {super().extra_repr()}"

    def _device(self) -> torch.device:
        return self._state_device()

    def _derive(self, values: Mapping[str, Any]) -> dict[str, Any]:
        low, high = (int(x) for x in values["queue"].aminmax())
        if low < -1 or high >= self.num_classes:
            raise ValueError(
                f"queue must hold classes in [0, num_classes={self.num_classes}), or -1, got"
                f" {low if low < -1 else high}"
            )
        if int(values["num_pushed"]) < 0:
            raise ValueError(f"num_pushed must not be negative, got {int(values['num_pushed'])}")
        return {}

    def _pool(self, target: Tensor) -> Tensor:
        return torch.cat((target.reshape(-1), self.queue[: self.capacity]))

    def _capacity(self, target: Tensor, replacement: bool) -> int:
        return target.numel() + self.capacity
