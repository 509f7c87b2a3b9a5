"""Samplers whose classes lie on several ranks: every rank draws, or keeps, those of its own."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from ..samplers import Sampler, Samples
from ..samplers.base import UNLIMITED, Draw, DrawOptions
from ..samplers.mixed import log_sum, split_samples
from .shard import ClassShard


class Keys(NamedTuple):
    """Where the random numbers of a step come from."""

    common: torch.Generator
    """In the same state on all ranks, which take the same numbers from it."""
    own: torch.Generator
    """Each rank's own."""


class OwnDraw(NamedTuple):
    """A rank's part of a draw."""

    rows: Tensor
    """[S_r] int64, counted from this rank's first; masked entries hold some row of its own."""
    masked: Tensor | None
    """[S_r] bool, the entries that count for nothing; None: every entry counts."""
    sizes: list[int]
    """S_r of every rank."""
    log_count: Callable[[Tensor], Tensor]
    """This rank's rows, of any shape, to log n of each; -inf for a class that cannot come."""


class ShardedSampler(Sampler):
    """A sampler of which every rank has the part of its own rows; draws are collective.

    `Sampler.shard` makes it, `ShardedSampledSoftmaxLoss` draws from it.
    """

    class_shard: ClassShard

    def __init__(self, shard: ClassShard, padding_idx: int | None) -> None:
        super().__init__()
        if not isinstance(shard, ClassShard):
            raise TypeError(
                f"{self._name}: shard must be a ClassShard, such as head.shard, got"
                f" {type(shard).__name__}"
            )
        self.class_shard = shard
        self.num_classes = shard.num_classes
        self.padding_idx = padding_idx

    @abstractmethod
    def own_draw(
        self, target: Tensor, options: DrawOptions, keys: Keys, stratified: bool
    ) -> OwnDraw:
        """Draw, on all ranks together.

        Args:
            target: int64, the targets of all ranks if the sampler depends on targets.
            options: S over all ranks, and how; checked.
            stratified: whether each rank draws an equal share of S from its own table, and not as
                many as fall to it.
        """

    def refresh(self, device: torch.device) -> None:
        """Exchange what ranks must know of each other's parts, if something has changed."""

    @property
    def revision(self) -> int:
        """How often this rank's part was overwritten, or has learnt; the same on all ranks."""
        parts = (m for m in self.modules() if isinstance(m, ShardedSampler))
        return sum(part._own_revision() for part in parts)

    def _own_revision(self) -> int:
        """`revision` without that of parts."""
        return 0

    def log_prob(self, ids: Tensor) -> Tensor:
        """log q of classes that this rank owns, float32 of the shape of ids; -inf for q = 0.

        Where weights are new, all ranks must call it or draw, since q depends on all of them.

        Raises:
            IndexError: on the CPU, an id of another rank. TypeError: ids that are not int64.
        """
        self._check_ids("log_prob", "ids", ids)
        self._check_range("log_prob", ids)
        rows, own = self.class_shard.local_of(self.class_shard.row_of(ids))
        if ids.device.type == "cpu" and not bool(own.all()):
            raise IndexError(
                f"{self._name}.log_prob: ids must be classes of this rank, shard.classes, got"
                f" {int(ids[~own][0])} of rank {int(self.class_shard.owner_of(ids[~own][0]))}"
            )
        return self.own_log_prob(rows)

    @abstractmethod
    def own_log_prob(self, rows: Tensor) -> Tensor:
        """log q of this rank's rows, float32 of their shape; -inf for q = 0."""

    def sample(self, target: Tensor, num_samples: int, **options: Any) -> Samples:
        """ValueError: all ranks draw together, in the forward pass of the head."""
        self._refuse_alone("sample")

    def log_expected_count(self, ids: Tensor, num_samples: int, **options: Any) -> Tensor:
        """ValueError: it depends on how the head draws."""
        self._refuse_alone("log_expected_count")

    def _begin_draw(
        self, target: Tensor, options: DrawOptions, generator: torch.Generator | None
    ) -> Draw:
        self._refuse_alone("a draw")

    def _refuse_alone(self, method: str) -> NoReturn:
        raise ValueError(
            f"{self._name}: {method} is not possible by one rank alone, which has a part of the"
            " classes: give the sampler to ShardedSampledSoftmaxLoss, whose forward pass draws on"
            " all ranks"
        )


class WholeSampler(ShardedSampler):
    """A sampler that every rank has as a whole, because it has no table of the classes: all ranks
    draw the same, and each keeps its own classes.

    Args:
        sampler: a formula, a pool whose `log_q` is sharded, or a sampler of somebody else's.
    """

    def __init__(self, sampler: Sampler, shard: ClassShard) -> None:
        super().__init__(shard, sampler.padding_idx)
        self.sampler = sampler

    @property
    def draws(self) -> bool:
        return self.sampler.draws

    @property
    def num_drawable(self) -> int:
        """As the sampler's."""
        return self.sampler.num_drawable

    def own_draw(
        self, target: Tensor, options: DrawOptions, keys: Keys, stratified: bool
    ) -> OwnDraw:
        draw = self.sampler._begin_draw(target, options, keys.common)
        shard = self.class_shard
        rows = shard.row_of(draw.ids)
        ranks = torch.bincount(rows // shard.rows_per_rank, minlength=shard.ranks.size)
        mine = (rows >= shard.begin) & (rows < shard.end)
        masked = None if draw.masked is None else draw.masked[mine]

        def log_count(own: Tensor) -> Tensor:
            return draw.log_count(shard.class_of(own + shard.begin))

        return OwnDraw(rows[mine] - shard.begin, masked, ranks.tolist(), log_count)

    def own_log_prob(self, rows: Tensor) -> Tensor:
        shard = self.class_shard
        return self.sampler.log_prob(shard.class_of(rows + shard.begin))

    def _capacity(self, target: Tensor, replacement: bool) -> int:
        return self.sampler._capacity(target, replacement)

    def _check_num_samples(
        self, method: str, num_samples: Any, replacement: bool, inclusion: str
    ) -> int:
        return self.sampler._check_num_samples(method, num_samples, replacement, inclusion)

    def _device(self) -> torch.device | None:
        return self.sampler._device()


class ShardedMixedSampler(ShardedSampler):
    """A mixture whose components are sharded; n is that of the mixture, at the owner of a class.

    Args:
        samplers: `ShardedSampler` on the same shard.
        proportions: their shares of the samples, which sum to 1.
    """

    def __init__(
        self, samplers: Sequence[ShardedSampler], proportions: Sequence[float], shard: ClassShard
    ) -> None:
        super().__init__(shard, None)
        self.samplers = nn.ModuleList(samplers)
        self.proportions = list(proportions)

    @property
    def num_drawable(self) -> int:
        """As of a `MixedSampler`."""
        return min(UNLIMITED, sum(s.num_drawable for s in self._components()))

    def own_draw(
        self, target: Tensor, options: DrawOptions, keys: Keys, stratified: bool
    ) -> OwnDraw:
        most = [s._capacity(target, options.replacement) for s in self._components()]
        shares = split_samples(options.num_samples, self.proportions, most)
        draws = [
            s.own_draw(target, options._replace(num_samples=share), keys, stratified)
            for s, share in zip(self._components(), shares, strict=True)
            if share > 0
        ]
        masked = [
            torch.zeros_like(d.rows, dtype=torch.bool) if d.masked is None else d.masked
            for d in draws
        ]
        return OwnDraw(
            torch.cat([d.rows for d in draws]),
            torch.cat(masked),
            [sum(sizes) for sizes in zip(*(d.sizes for d in draws), strict=True)],
            lambda rows: log_sum([d.log_count(rows).double() for d in draws]),
        )

    def own_log_prob(self, rows: Tensor) -> Tensor:
        parts = zip(self._components(), self.proportions, strict=True)
        return log_sum([s.own_log_prob(rows).double() + math.log(p) for s, p in parts])

    def extra_repr(self) -> str:
        return f"proportions=[{', '.join(f'{p:.4g}' for p in self.proportions)}]"

    def _capacity(self, target: Tensor, replacement: bool) -> int:
        return min(UNLIMITED, sum(s._capacity(target, replacement) for s in self._components()))

    def _components(self) -> list[ShardedSampler]:
        return list(self.samplers)  # type: ignore[arg-type]
