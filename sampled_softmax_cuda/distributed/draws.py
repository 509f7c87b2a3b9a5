"""How the negatives of a step are drawn on all ranks together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from .._checks import check_choice
from ..samplers import Sampler
from ..samplers.base import DrawOptions
from ..samplers.pooled import Learner, PooledSampler
from .call import Agreed, Batch, Layout
from .drawn import Drawn, drawn_of, drawn_of_owner
from .keys import generator_of_step
from .shard import ClassShard
from .sharded_sampler import Keys, ShardedMixedSampler, ShardedSampler
from .sharding import sharded
from .tables import ShardedTable

DrawName = Literal["auto", "global", "composed", "stratified"]

DRAWS = ("auto", "global", "composed", "stratified")


def drawn_from(
    fn: str, draw: str, sampler: Sampler, shard: ClassShard, replacement: bool
) -> tuple[str, Sampler]:
    """How a head draws, for "auto" what fits, and the sampler that it draws from.

    Raises:
        ValueError: a draw that the sampler can't make.
    """
    check_choice(fn, "draw", draw, DRAWS)
    if not sampler.draws:
        return draw, sampler  # refused like any other
    parts = [m for m in sampler.modules() if isinstance(m, ShardedSampler)]
    if draw == "auto":
        draw = "global" if not parts else "composed" if replacement else "stratified"
    if draw == "global":
        if parts:
            raise ValueError(
                f"{fn}: draw='global' needs a sampler of all classes on every rank, got a"
                f" {type(parts[0]).__name__}: use draw='composed' or 'stratified'"
            )
        return draw, sampler
    result = sharded(sampler, shard, draw == "stratified")
    if draw == "composed" and not replacement:
        for part in drawing_tables(result):
            part.refuse_distinct()
    return draw, result


def drawing_tables(sampler: Sampler) -> Iterator[ShardedTable]:
    """The tables that a sharded sampler draws from, as a mixture does from its components."""
    if isinstance(sampler, ShardedTable):
        yield sampler
    if isinstance(sampler, ShardedMixedSampler):
        for part in sampler._components():
            yield from drawing_tables(part)


def draw_step(
    sampler: Sampler,
    draw: str,
    options: DrawOptions,
    layout: Layout,
    batch: Batch,
    agreed: Agreed,
    padding_idx: int | None,
    key: tuple[int, int],
    generator: torch.Generator | None,
) -> Drawn:
    """The negatives of a step, from what all ranks share.

    Args:
        draw: one of `DRAWS`, but for "auto".
        options: S over all ranks, and how.
        key: seed and number of the step.
        generator: that of the user, in the same state on all ranks, in place of the key; or None.
    """
    shard, target = layout.shard, batch.target
    everyone, own = target, slice(None)
    if _uses_targets(sampler):
        everyone, own = _all_targets(layout, target, agreed)
    common = generator
    if common is None:
        common = generator_of_step(*key, target.device)
    if isinstance(sampler, ShardedSampler):
        if generator is not None:
            key = int(torch.randint(2**62, (1,), device=target.device, generator=generator)), 0
        keys = Keys(common, generator_of_step(*key, target.device, 1 + shard.ranks.rank))
        drawn = sampler.own_draw(everyone, options, keys, draw == "stratified")
        return drawn_of_owner(drawn, shard, padding_idx)._replace(learns=everyone)
    samples = sampler.sample(
        everyone,
        options.num_samples,
        replacement=options.replacement,
        inclusion=options.inclusion,  # type: ignore[arg-type]
        generator=common,
    )
    counts = samples.target_log_expected_count
    samples = replace(samples, target_log_expected_count=None if counts is None else counts[own])
    return drawn_of(samples, shard, padding_idx, target)


def _all_targets(layout: Layout, target: Tensor, agreed: Agreed) -> tuple[Tensor, slice]:
    """The targets of all ranks and replicas, in one order, and where this rank's are."""
    ranks, replicas = layout.ranks, layout.replicas
    begin = sum(agreed.replicas_rows[: replicas.rank])
    if not layout.replicated:
        begin += sum(agreed.rows[: ranks.rank])
    own = slice(begin, begin + target.shape[0])
    if not layout.replicated:
        target = ranks.gather_rows(target, agreed.rows, "targets")
    return replicas.gather_rows(target, agreed.replicas_rows, "targets"), own


def _uses_targets(sampler: Sampler) -> bool:
    """Whether the sampler draws from targets, or learns from them."""
    return any(isinstance(m, (PooledSampler, Learner)) for m in sampler.modules())
