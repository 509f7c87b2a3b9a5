"""The sharded sampler of each sampler of the package."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ..ops.sample import distribution
from ..samplers import MixedSampler, Sampler, StreamingSampler, WeightedSampler
from ..samplers._stream import CountedStream
from ..samplers.keyed import KeyedSampler
from ..samplers.pool import PoolSampler
from ..samplers.ranked import RankedSampler
from .shard import ClassShard
from .sharded_sampler import ShardedMixedSampler, ShardedSampler, WholeSampler
from .streaming import ShardedStreamingSampler
from .tables import ShardedTable
from .weighted import ShardedWeightedSampler

_CHUNK = 1 << 20  # classes whose probabilities are computed at a time


def sharded(
    sampler: Sampler,
    shard: ClassShard,
    stratified: bool = False,
    done: dict[Sampler, ShardedSampler] | None = None,
) -> ShardedSampler:
    """The parts of a sampler that belong to this rank's rows.

    Args:
        sampler: of all classes, or sharded already.
        stratified: whether a formula gets a table of its own rows too, to draw from these alone.
        done: what has been sharded, which parts of a mixture may share.

    Raises:
        ValueError: a sharded one on another shard.
    """
    done = {} if done is None else done
    if sampler not in done:
        done[sampler] = _sharded(sampler, shard, stratified, done)
    return done[sampler]


def _sharded(
    sampler: Sampler, shard: ClassShard, stratified: bool, done: dict[Sampler, ShardedSampler]
) -> ShardedSampler:
    if isinstance(sampler, ShardedSampler):
        check_shard(sampler, shard)
        if isinstance(sampler, WholeSampler):
            return sharded(sampler.sampler, shard, stratified, done) if stratified else sampler
        if not (stratified and isinstance(sampler, ShardedMixedSampler)):
            return sampler
    # Only what is known in full is taken apart: a subclass may draw or learn in another way.
    if type(sampler) is MixedSampler or isinstance(sampler, ShardedMixedSampler):
        parts = [sharded(s, shard, stratified, done) for s in sampler._components()]
        return ShardedMixedSampler(parts, sampler.proportions, shard)
    if isinstance(sampler, RankedSampler) and sampler.listed is not None:
        return _of_table(sampler.listed, shard, sampler.padding_idx)
    if type(sampler) is WeightedSampler:
        return _of_table(sampler, shard, sampler.padding_idx)
    if type(sampler) is StreamingSampler and isinstance(sampler.stream, CountedStream):
        return _of_counts(sampler, sampler.stream, shard)
    if isinstance(sampler, PoolSampler) and sampler.log_q is not None:
        log_q = sharded(sampler.log_q, shard, False, done)
        sampler = copy.copy(sampler)  # the queue is the same, the table of all classes is not
        sampler._modules = {**sampler._modules, "log_q": log_q}
    elif stratified and sampler.draws and isinstance(sampler, KeyedSampler):
        return _of_formula(sampler, shard)
    return WholeSampler(sampler, shard)


def check_shard(sampler: ShardedSampler, shard: ClassShard) -> None:
    """ValueError unless the sampler's parts are those of this shard's rows."""

    def rows(x: ClassShard) -> tuple[int, int, int, int]:
        return x.num_classes, x.multiplier, x.begin, x.end

    if rows(sampler.class_shard) != rows(shard):
        raise ValueError(
            f"{sampler._name}: its rows must be those of the head, {shard}, got"
            f" {sampler.class_shard}: build its ClassShard from the same num_classes, mesh and"
            " class_order"
        )


def _of_table(sampler: WeightedSampler, shard: ClassShard, padding: int | None) -> ShardedTable:
    q = sampler._probabilities()
    weights = q[shard.classes.to(q.device)]
    return ShardedWeightedSampler(
        weights, shard, padding_idx=padding, persistent=sampler.persistent
    )


def _of_counts(
    sampler: StreamingSampler, stream: CountedStream, shard: ClassShard
) -> ShardedStreamingSampler:
    result = ShardedStreamingSampler(
        shard,
        update_on_sample=sampler.update_on_sample,
        ignore_index=sampler.ignore_index,
        padding_idx=sampler.padding_idx,
        staleness=stream.staleness,
        persistent=stream.persistent,
    ).to(stream.counts.device)
    result.counts.copy_(stream.counts[shard.classes.to(stream.counts.device)])
    result.total.copy_(stream.total)
    result.rebuild()
    return result.train(sampler.training)


def _of_formula(sampler: KeyedSampler, shard: ClassShard) -> ShardedWeightedSampler:
    """A table of own rows of a sampler that has none, for draws among them alone."""
    q = distribution(sampler._proposal())
    parts: list[Tensor] = [
        q.probability(shard.class_of(torch.arange(begin, min(begin + _CHUNK, shard.end))))
        for begin in range(shard.begin, shard.end, _CHUNK)
    ]
    weights = torch.cat([torch.empty(0, dtype=torch.float64), *parts])
    return ShardedWeightedSampler(weights, shard, persistent=False)
