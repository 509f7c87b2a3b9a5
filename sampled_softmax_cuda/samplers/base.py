"""The base of all samplers: draws shared by the batch, probabilities, expected counts, checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from .._arguments import as_bool, as_int, check_int64, describe
from .._rules import host_rules
from .._torchscript import NotScriptable
from ..options import Inclusion
from ..samples import KeyedSamples, Samples
from ._state import Stateful

if TYPE_CHECKING:
    from ..distributed import ClassShard

INCLUSIONS = ("expected", "observed", "estimated")

ANY_CLASSES = 2**63 - 1
"""`num_classes` of a sampler that was not told how many there are and takes any id."""

UNLIMITED = 2**62
"""More samples than any share needs, such that sums stay integers that torch can count with."""

_KEY_LIMIT = 2**63 - 1  # all that torch.randint can do


class DrawOptions(NamedTuple):
    """How many classes are drawn, and how; checked."""

    num_samples: int
    replacement: bool
    inclusion: str


class Draw(NamedTuple):
    """One draw, before the loss knows of it."""

    ids: Tensor
    """[S] int64; masked entries hold some id of the same draw."""
    masked: Tensor | None
    """[S] bool, the entries that count for nothing; None: every entry counts."""
    log_count: Callable[[Tensor], Tensor]
    """ids of any shape in [0, num_classes) to log n of each; -inf for a class that cannot come."""


class Sampler(NotScriptable, Stateful, ABC):
    """Draws class ids for sampled softmax: the base of all samplers.

    A draw takes its key of two 64-bit numbers from PyTorch's random state; the same key gives the
    same ids on every device and for any number of threads.
    """

    num_classes: int
    padding_idx: int | None = None
    """A class that is no class and is never drawn, or None."""

    @property
    def draws(self) -> bool:
        """Whether it can draw at all, or only knows frequencies."""
        return True

    @property
    def draws_rows(self) -> bool:
        """Whether every row can have draws of its own (per_row=True)."""
        return False

    @property
    def num_drawable(self) -> int:
        """The number of classes with q > 0."""
        return self.num_classes

    @abstractmethod
    def sample(
        self,
        target: Tensor,
        num_samples: int,
        *,
        replacement: bool = True,
        inclusion: Inclusion = "expected",
        per_row: bool = False,
        exclude: Tensor | None = None,
        num_true: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Samples:
        """Draw classes, shared by the batch or for each row its own, with the log expected counts
        that the loss subtracts.

        With replacement: S independent draws, n = S q. Without: the first S distinct classes of the
        same stream, in the order of the draws, and n = 1 - (1 - q)^t with t, by `inclusion`,

        - "expected": the t at which S distinct classes are expected;
        - "observed": the number of draws that this very sample took (TensorFlow);
        - "estimated": the mean number of draws of ten separate samples (CNTK).

        Args:
            target: int64 of any shape, the classes whose expected counts the loss will need. Ids
                outside [0, num_classes), such as an ignore_index, get 0, and so do classes that are
                never drawn (q = 0): their logits are not corrected.
            num_samples: S, at least 1; without replacement at most `num_drawable`.
            replacement: whether a class may be drawn more than once.
            inclusion: which t, without replacement.
            per_row: whether every row has S classes of its own; `sample_keyed` gives the same ones
                without storing them.
            exclude: with per_row, [*, E] int64, classes that a row must not have; negative ids are
                padding. Its draws that are excluded are made again, so the others are likelier: q
                is divided by 1 minus what the excluded ones have. With "expected" and "estimated" t
                stays that of the whole proposal. A target's own count is that of a class which is
                not excluded.
            num_true: with per_row, T where target is [*, T]; None: its entries are the rows.
            generator: on the target's device; torch's default generator if None, and inside
                torch.compile, which can't trace a generator.

        Returns:
            `Samples(ids [S], log_expected_count [S], target_log_expected_count)`, the last of the
            target's shape; with per_row ids and counts are [*, S].

        Raises:
            ValueError: num_samples below 1 or above num_drawable, an unknown inclusion, a target on
                another device; exclude or num_true without per_row or of the wrong shape; on the
                CPU, an exclude that leaves a row too few classes (on CUDA its ids are then -1 and
                its counts NaN). TypeError: a target or exclude that is not int64, a num_samples
                that is not an int, a generator that is no torch.Generator. IndexError: an excluded
                id of num_classes or more, on the CPU.

        Example:
            >>> import torch, sampled_softmax_cuda as ssc
            >>> sampler = ssc.LogUniformSampler(1000)
            >>> samples = sampler.sample(torch.tensor([3, 14, 15]), 8, replacement=False)
            >>> samples.ids.shape, samples.target_log_expected_count.shape
            (torch.Size([8]), torch.Size([3]))
            >>> sampler.sample(torch.tensor([3, 14, 15]), 8, per_row=True).ids.shape
            torch.Size([3, 8])
        """

    def sample_keyed(
        self,
        target: Tensor,
        num_samples: int,
        *,
        replacement: bool = True,
        inclusion: Inclusion = "expected",
        exclude: Tensor | None = None,
        num_true: int | None = None,
        generator: torch.Generator | None = None,
    ) -> KeyedSamples:
        """ValueError: only samplers of one distribution have draws for each row."""
        self._refuse("sample_keyed", "a draw for each row, from a key alone,")

    def draw(
        self, key: Tensor, num_samples: int, *, replacement: bool = True
    ) -> tuple[Tensor, Tensor]:
        """ValueError: only samplers of one distribution draw from a key alone."""
        self._refuse("draw", "a draw from a key alone")

    @abstractmethod
    def log_prob(self, ids: Tensor) -> Tensor:
        """log q of each class, float32 of the shape of ids, computed in float64; -inf for q = 0.

        Raises:
            IndexError: an id outside [0, num_classes). TypeError: ids that are not int64.

        Example:
            >>> import torch, sampled_softmax_cuda as ssc
            >>> ssc.LogUniformSampler(3).log_prob(torch.tensor([0, 1, 2])).exp()
            tensor([0.5000, 0.2925, 0.2075])
        """

    @abstractmethod
    def log_expected_count(
        self,
        ids: Tensor,
        num_samples: int,
        *,
        replacement: bool = True,
        inclusion: Inclusion = "expected",
    ) -> Tensor:
        """log n of each class in a sample of num_samples, float32 of the shape of ids.

        -inf for a class that is never drawn, for which `sample` gives 0: nothing to correct.

        Args:
            ids: int64 of any shape, in [0, num_classes).
            num_samples, replacement, inclusion: as in `sample`, but for inclusion="observed", which
                exists only together with a draw.

        Raises:
            IndexError: an id outside [0, num_classes). ValueError, TypeError: as `sample`.

        Example:
            >>> import torch, sampled_softmax_cuda as ssc
            >>> sampler = ssc.UniformSampler(8)
            >>> sampler.log_expected_count(torch.tensor([5]), 4, replacement=False).exp()
            tensor([0.5000])
        """

    def shard(self, shard: ClassShard) -> Sampler:
        """This rank's part of the sampler, for `ssc.distributed.ShardedSampledSoftmaxLoss`.

        Tables and counts become those of the rank's own rows. What has none, such as a formula or a
        queue, stays whole, and is the same object.

        Args:
            shard: which classes are whose.

        Returns:
            A Sampler, which draws in the forward pass of such a head alone.

        Example:
            >>> import torch, sampled_softmax_cuda as ssc
            >>> shard = ssc.distributed.ClassShard(1000)
            >>> ssc.WeightedSampler(torch.rand(1000)).shard(shard)
            ShardedWeightedSampler(num_classes=1000, power=1, smoothing=0)
        """
        from ..distributed.sharding import sharded  # which is above this module

        return sharded(self, shard)

    @abstractmethod
    def _begin_draw(
        self, target: Tensor, options: DrawOptions, generator: torch.Generator | None
    ) -> Draw:
        """At most S ids shared by the batch; the arguments have been checked."""

    def _new_key(self, target: Tensor, generator: torch.Generator | None) -> Tensor:
        """(seed, offset) of a draw, int64 [2], by a built-in operator: a CUDA graph can hold it."""
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(
                f"{self._name}: generator must be a torch.Generator or None, got"
                f" {describe(generator)}: pass torch.Generator().manual_seed(seed)"
            )
        return torch.randint(_KEY_LIMIT, (2,), device=target.device, generator=generator)

    def _capacity(self, target: Tensor, replacement: bool) -> int:
        """The most samples that can be had for this target."""
        return UNLIMITED if replacement else self.num_drawable

    def _device(self) -> torch.device | None:
        """Where the sampler's tensors are; None if it has none and serves any device."""
        return self._state_device() if self._STATE else None

    # --- checks --------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _check_ids(self, method: str, argument: str, ids: Any) -> None:
        if type(ids) is not Tensor or ids.dtype is not torch.int64:
            check_int64(f"{self._name}.{method}", argument, ids)
        device = self._device()
        if device is not None and ids.device != device:
            raise ValueError(
                f"{self._name}.{method}: {argument} must be on the sampler's device {device},"
                f" got {ids.device}; sampler.to({str(ids.device)!r}) moves the sampler"
            )

    def _check_range(self, method: str, ids: Tensor) -> None:
        if torch.compiler.is_compiling() or not host_rules(ids) or ids.numel() == 0:
            return
        low, high = (int(x) for x in torch.aminmax(ids))
        if low < 0 or high >= self.num_classes:
            raise IndexError(
                f"{self._name}.{method}: ids must be in [0, num_classes={self.num_classes}), got"
                f" {low if low < 0 else high}"
            )

    def _check_num_samples(
        self, method: str, num_samples: Any, replacement: bool, inclusion: str
    ) -> int:
        as_bool(f"{self._name}.{method}", "replacement", replacement)
        count = num_samples
        if type(count) is not int or count < 1:
            count = as_int(f"{self._name}.{method}", "num_samples", num_samples, least=1)
        if count >= 2**31:
            raise ValueError(f"{self._name}.{method}: num_samples must be below 2^31, got {count}")
        if inclusion not in INCLUSIONS:
            raise ValueError(
                f"{self._name}.{method}: inclusion must be one of {', '.join(INCLUSIONS)},"
                f" got {inclusion!r}"
            )
        if not replacement and count > self.num_drawable:
            raise ValueError(
                f"{self._name}.{method}: num_samples must be at most {self.num_drawable}, the"
                f" number of classes with positive probability, without replacement, got {count}"
            )
        return count

    def _options(
        self, method: str, num_samples: Any, replacement: bool, inclusion: str
    ) -> DrawOptions:
        num_samples = self._check_num_samples(method, num_samples, replacement, inclusion)
        return DrawOptions(num_samples, replacement, inclusion)

    def _refuse(self, method: str, what: str) -> NoReturn:
        raise ValueError(
            f"{self._name}.{method}: {what} is not possible: its ids do not come from one stream of"
            " independent draws; use sample(), which shares the ids among all rows"
        )


def check_num_classes(name: str, num_classes: object, limit: int) -> int:
    """num_classes as an int in [1, limit]."""
    num_classes = as_int(name, "num_classes", num_classes)
    if not 1 <= num_classes <= limit:
        raise ValueError(f"{name}: num_classes must be in [1, {limit}], got {num_classes}")
    return num_classes
