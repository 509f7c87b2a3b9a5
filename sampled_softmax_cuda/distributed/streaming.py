"""A proposal that learns from targets, of which every rank counts those of its own rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._arguments import as_float
from ..samplers._state import lasting
from ..samplers.base import DrawOptions
from ..samplers.pooled import Learner, check_ignore_index, is_class
from .shard import ClassShard
from .sharded_sampler import Keys, OwnDraw
from .tables import ShardedTable, never


class ShardedStreamingSampler(ShardedTable, Learner):
    """A `StreamingSampler` that counts, of which every rank counts the targets of its own classes.

    The head shows it the targets of all ranks, so that counts and `log_prob` are exact at once, and
    there is no `sync`: 24 bytes for each class that a rank owns. `StreamingSampler.shard` makes it
    too, and goes on from its counts.

    Args:
        shard: as in `ShardedWeightedSampler`.
        update_on_sample, ignore_index, padding_idx, staleness, persistent: as in
            `StreamingSampler`.

    The state_dict has `counts` and `drawn`, the counts that are drawn from, int64 [C], as DTensors
    `Shard(0)`.

    Raises:
        ValueError, TypeError: arguments that are not as above.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> shard = ssc.distributed.ClassShard(1000)
        >>> sampler = ssc.distributed.ShardedStreamingSampler(shard, update_on_sample=True)
        >>> head = ssc.distributed.ShardedSampledSoftmaxLoss(16, 1000, 64, sampler)
        >>> loss = head(torch.randn(3, 16), torch.tensor([7, 7, 8]))
        >>> sampler.log_prob(torch.tensor([7, 8])).exp() * 1003  # each began with 1
        tensor([3.0000, 2.0000])
    """

    _STATE = ("counts", "total", "pending")

    counts: Tensor
    """int64 [C_r], 1 + the number of times that each own class was a target."""
    total: Tensor
    """int64 [], the sum of the counts of all ranks."""
    pending: Tensor
    """int64 [], the targets that the table does not know of."""

    def __init__(
        self,
        shard: ClassShard,
        *,
        update_on_sample: bool = False,
        ignore_index: int = -100,
        padding_idx: int | None = None,
        staleness: float = 0.05,
        persistent: bool = True,
    ) -> None:
        super().__init__(shard, padding_idx)
        self.update_on_sample = update_on_sample
        self.ignore_index = check_ignore_index(self._name, ignore_index)
        self.staleness = as_float(self._name, "staleness", staleness)
        if not 0 <= self.staleness < math.inf:
            raise ValueError(f"{self._name}: staleness must be a number >= 0, got {staleness}")
        counts = torch.ones(shard.num_rows, dtype=torch.int64, device="cpu")
        if self.padding_idx is not None:
            counts[shard.classes == self.padding_idx] = 0
        total = shard.num_classes - (self.padding_idx is not None)
        self._set_state(
            torch.get_default_device(),
            persistent,
            counts=counts,
            total=torch.tensor(total, device="cpu"),
            pending=torch.zeros((), dtype=torch.int64, device="cpu"),
        )
        self._pending = 0
        self._set_table(self._known("counts"))

    @property
    def drawn(self) -> Tensor:
        """int64 [C_r], the counts that are drawn from, of this rank's rows."""
        if self.table is None:
            return torch.zeros_like(self._known("counts"))
        return (self.table._probabilities() * self._mass).round().to(torch.int64)

    def update(self, target: Tensor) -> None:
        """Count targets; those that all ranks have, in the same order, on all of them.

        Args:
            target: int64 of any shape; ignore_index and ids that are no class are left out.

        Raises:
            TypeError, ValueError: a target that is not int64, or on another device.
        """
        self._check_ids("update", "target", target)
        ids = target.detach().reshape(-1)
        valid = is_class(ids, self.num_classes, self.padding_idx, self.ignore_index)
        row, own = self.class_shard.local_of(self.class_shard.row_of(torch.where(valid, ids, 0)))
        if self.class_shard.num_rows > 0:
            self.counts.index_add_(0, row, (own & valid).to(torch.int64))
        self.total.add_(valid.sum())
        self.pending.add_(ids.numel())
        self._pending += ids.numel()

    def rebuild(self) -> None:
        """Draw from the counts of now, however few are new; to be called on all ranks."""
        self._set_table(self._known("counts"))
        with lasting():
            self._overwrite(pending=torch.zeros_like(self.pending))
        self._pending = 0

    def own_draw(
        self, target: Tensor, options: DrawOptions, keys: Keys, stratified: bool
    ) -> OwnDraw:
        self.refresh(target.device)
        assert self._parts is not None
        if self._pending > self.staleness * self._parts.total:
            self.rebuild()
        return super().own_draw(target, options, keys, stratified)

    def own_log_prob(self, rows: Tensor) -> Tensor:
        if self.class_shard.num_rows == 0:
            return never(rows)
        return (self.counts[rows].to(torch.float64) / self.total).log().to(torch.float32)

    def _own_revision(self) -> int:
        return (self._revision << 40) + self._pending

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, staleness={self.staleness:g}"

    def _device(self) -> torch.device:
        return self._state_device()

    def _rows(self) -> dict[str, Tensor]:
        return {"counts": self.counts.detach(), "drawn": self.drawn}

    def _take_rows(self, rows: dict[str, Tensor]) -> None:
        drawn = rows["drawn"]
        if drawn.dtype != torch.int64 or not bool((drawn >= 0).all()):
            raise ValueError(f"drawn must be int64 and not negative, got {drawn.dtype}")
        self._set_table(drawn.to(self._device()))

    def _derive(self, values: Mapping[str, Any]) -> dict[str, Any]:
        if bool((values["counts"] < 0).any()) or int(values["pending"]) < 0:
            raise ValueError("counts and pending must not be negative")
        return {"_pending": int(values["pending"])}
