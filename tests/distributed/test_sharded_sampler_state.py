"""The state of samplers whose classes lie on several ranks: for any number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, distributed, multiprocessing

import sampled_softmax_cuda as ssc
from helpers.rank_threads import run_ranks
from sampled_softmax_cuda.distributed import (
    ClassShard,
    ShardedSampledSoftmaxLoss,
    ShardedStreamingSampler,
    ShardedWeightedSampler,
)

C, D, S = 37, 4, 12


def head_of(weights: Tensor, **options: object) -> ShardedSampledSoftmaxLoss:
    """A head whose negatives come from weights, from counts, and from a queue."""
    shard = ClassShard(C)
    stream = ShardedStreamingSampler(shard, update_on_sample=True, padding_idx=2)
    parts = [
        ShardedWeightedSampler(weights[shard.classes], shard, 0.5, 1.0),
        stream,
        ssc.QueueSampler(6, stream).shard(shard),
    ]
    mixed = ssc.MixedSampler(parts)
    return ShardedSampledSoftmaxLoss(D, C, S, mixed, draw="composed", seed=7, **options)  # type: ignore[arg-type]


def step(head: ShardedSampledSoftmaxLoss, number: int) -> Tensor:
    """The loss over all ranks; three rows in all."""
    g = torch.Generator().manual_seed(number)
    h, target = torch.randn(3, D, generator=g), torch.randint(C, (3,), generator=g)
    ranks = head.layout.ranks
    own = slice(ranks.rank, None, ranks.size) if ranks.size <= 3 else slice(0, 0)
    loss = head(h[own], target[own])
    return ranks.all_reduce(loss.detach(), "losses") / ranks.size


def own_log_q(head: ShardedSampledSoftmaxLoss) -> Tensor:
    """log q by each component, of this rank's classes; the others' are NaN."""
    mine = head.shard.classes
    found = torch.full((3, C), torch.nan)
    for row, part in zip(found, head.sampler.samplers, strict=True):  # type: ignore[arg-type]
        row[mine] = part.log_prob(mine)
    return found


def _process(rank: int, size: int, folder: str, load: bool) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store{size}{load}", rank=rank, world_size=size
    )
    head = head_of(torch.zeros(C) if load else torch.arange(C).float())
    if load:
        state = head.state_dict()
        dcp.load(state, checkpoint_id=f"{folder}/saved")
        head.load_state_dict(state)
    else:
        step(head, 0)
        dcp.save(head.state_dict(), checkpoint_id=f"{folder}/saved")
    drawn = head.sampler.samplers[1].drawn  # type: ignore[union-attr, index]
    torch.save((own_log_q(head), drawn), f"{folder}/{size}-{load}-{rank}.pt")
    distributed.destroy_process_group()


def test_tables_counts_and_queues_fit_any_number_of_ranks(tmp_path: Path) -> None:
    folder = str(tmp_path)
    multiprocessing.spawn(_process, (2, folder, False), nprocs=2)
    saved = [torch.load(f"{folder}/2-False-{rank}.pt") for rank in range(2)]
    expected = torch.stack([q for q, _ in saved]).nan_to_num(0).sum(0)
    assert not torch.allclose(expected[0], expected[1])
    for size in (1, 3):
        multiprocessing.spawn(_process, (size, folder, True), nprocs=size)
        found = [torch.load(f"{folder}/{size}-True-{rank}.pt") for rank in range(size)]
        assert torch.allclose(torch.stack([q for q, _ in found]).nan_to_num(0).sum(0), expected)
        assert torch.equal(torch.cat([n for _, n in found]), torch.cat([n for _, n in saved]))


def goes_on(rank: int, size: int) -> None:
    """A head that loads what another has saved draws what that draws next."""
    first = head_of(torch.arange(C).float())
    for number in range(3):
        step(first, number)
    again = head_of(torch.zeros(C))
    again.load_state_dict(first.state_dict())
    for number in range(3, 6):
        assert torch.equal(step(first, number), step(again, number))
    state = first.state_dict()
    del state["sampler.samplers.1.counts"]
    with pytest.raises(RuntimeError, match=r"Missing key.*samplers\.1\.counts"):
        again.load_state_dict(state)
    state = first.state_dict() | {"sampler.samplers.0.weights": torch.ones(C - 1)}
    with pytest.raises(RuntimeError, match="must have C=37 rows"):
        again.load_state_dict(state)


@pytest.mark.parametrize("size", [1, 2])
def test_a_loaded_head_goes_on(size: int) -> None:
    run_ranks(size, goes_on)


def elsewhere(rank: int, size: int) -> None:
    """A sampler on meta, and one that keeps nothing."""
    shard = ClassShard(C)
    sampler = ssc.WeightedSampler(torch.arange(C).float()).shard(shard)
    before = sampler.log_prob(shard.classes)
    head = ShardedSampledSoftmaxLoss(D, C, S, sampler, seed=1, device="meta")
    head.to_empty(device="cpu").reset_parameters()
    step(head, 0)
    assert torch.equal(head.sampler.log_prob(shard.classes), before)
    stream = ShardedStreamingSampler(shard, persistent=False)
    assert not stream.state_dict()
    assert not ShardedWeightedSampler(shard.classes, shard, persistent=False).state_dict()
    assert set(head.sampler.state_dict()) == {"weights"}


def test_elsewhere() -> None:
    run_ranks(3, elsewhere)
