"""The negatives of a step, as the two algorithms take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..samples import Samples
from .shard import ClassShard
from .sharded_sampler import OwnDraw


class Drawn(NamedTuple):
    """Rows of the class matrix, counted over all ranks, and log expected counts."""

    rows: Tensor
    """[S] int64, those of all ranks; or this rank's, if there are `sizes`."""
    log_count: Tensor | None
    """Of the shape of rows; +inf for a sample that does not count. None: 1 each."""
    target_log_count: Tensor | None = None
    """[B, T] of this rank's targets; None: 1 each, or `log_count_of` knows."""
    sizes: Sequence[int] | None = None
    """How many samples each rank has, if it has only those of its own classes."""
    log_count_of: Callable[[Tensor], Tensor] | None = None
    """Log expected counts, float32, of this rank's own rows, counted from its first: where only
    the owner of a class knows them."""
    learns: Tensor | None = None
    """The targets that a sharded sampler is to learn once the loss is computed, for which it may be
    asked for their counts; or None."""

    @property
    def num_samples(self) -> int:
        """S, over all ranks."""
        return self.rows.shape[-1] if self.sizes is None else sum(self.sizes)


def drawn_of(samples: Samples, shard: ClassShard, padding_idx: int | None, target: Tensor) -> Drawn:
    """Samples that all ranks have alike.

    Args:
        target: [B, T], for the shape of its counts.
    """
    if padding_idx is not None:
        samples = samples.without(padding_idx)
    ids, of_target = samples.ids, samples.target_log_expected_count
    if ids.dim() > 2:
        ids = ids.reshape(-1, ids.shape[-1])
    count = samples.log_expected_count
    return Drawn(
        shard.row_of(ids),
        None if count is None else count.reshape(ids.shape),
        None if of_target is None else of_target.reshape(target.shape),
    )


def drawn_of_owner(own: OwnDraw, shard: ClassShard, padding_idx: int | None) -> Drawn:
    """Samples of which every rank has those of its own classes, and knows their counts alone."""
    count = _log_count(own, own.rows)
    if own.masked is not None:
        count = count.masked_fill(own.masked, torch.inf)
    rows = own.rows + shard.begin
    if padding_idx is not None:
        count = count.masked_fill(shard.class_of(rows) == padding_idx, torch.inf)

    return Drawn(rows, count, sizes=own.sizes, log_count_of=partial(_log_count, own))


def _log_count(own: OwnDraw, rows: Tensor) -> Tensor:
    """log n, float32, of this rank's rows; 0 for a class that can't come."""
    count = own.log_count(rows).to(torch.float32)
    return torch.where(count == -torch.inf, 0.0, count)


def all_of(drawn: Drawn, shard: ClassShard) -> Drawn:
    """The samples of all ranks, on each of them."""
    if drawn.sizes is None:
        return drawn
    ranks, sizes = shard.ranks, drawn.sizes
    rows = ranks.gather_rows(drawn.rows, sizes, "samples")
    count = drawn.log_count
    if count is not None:
        count = ranks.gather_rows(count, sizes, "expected counts of samples")
    return drawn._replace(rows=rows, log_count=count, sizes=None)


def own_of(drawn: Drawn, shard: ClassShard) -> tuple[Tensor, Tensor | None]:
    """This rank's samples, counted from its first row, and their log expected counts."""
    if drawn.sizes is not None:
        return drawn.rows - shard.begin, drawn.log_count
    own = (drawn.rows >= shard.begin) & (drawn.rows < shard.end)
    count = None if drawn.log_count is None else drawn.log_count[own]
    return drawn.rows[own] - shard.begin, count


def known(ids: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Ids with 0 in place of those that are no classes, and which are classes."""
    inside = (ids >= 0) & (ids < num_classes)
    return torch.where(inside, ids, 0), inside
