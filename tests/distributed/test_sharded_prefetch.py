"""Steps that begin before their input is there."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import sampled_softmax_cuda as ssc
from helpers.rank_threads import run_ranks
from sampled_softmax_cuda.distributed import ShardedSampledSoftmaxLoss
from sampled_softmax_cuda.distributed.ranks import Ranks

C, D, S = 41, 6, 12

SAMPLERS: dict[str, Any] = {
    "log_uniform": lambda: "log_uniform",
    "composed": lambda: torch.arange(1.0, C + 1),
    "streaming": lambda: ssc.StreamingSampler(C, update_on_sample=True),
    "queue": lambda: ssc.QueueSampler(9, ssc.StreamingSampler(C, update_on_sample=True)),
}


def batch(rank: int, step: int, num_true: int | None = None) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(100 * step + rank)
    rows = 3 + rank
    shape = (rows,) if num_true is None else (rows, num_true)
    return torch.randn(rows, D, generator=g), torch.randint(C, shape, generator=g)


def trained(rank: int, size: int, ahead: bool, sampler: str, options: dict[str, Any]) -> Tensor:
    """The losses and the own weight after some steps."""
    options = dict(options)
    num_true = options.pop("num_true", None)
    same_rows = options.get("input_layout") == "replicated" or options.get("static_batch")
    draw = "global" if sampler == "log_uniform" else "composed"
    head = ShardedSampledSoftmaxLoss(
        D, C, S, SAMPLERS[sampler](), draw=draw, seed=5, sparse_grad=True, **options
    )
    optimizer = ssc.optim.AdamW(head.parameters(), lr=0.1, weight_decay=0.1)
    found = []
    for step in range(4):
        h, target = batch(0 if same_rows else rank, step, num_true)
        if ahead:
            head.prefetch(target, num_true=num_true)
        loss = head(h, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    optimizer.settle()
    return torch.cat((torch.stack(found), head.weight.detach().flatten()))


@pytest.mark.parametrize("algorithm", ["fetch", "gather", "auto"])
@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        *((sampler, {}) for sampler in SAMPLERS),
        ("composed", {"num_true": 2}),
        ("composed", {"input_layout": "replicated"}),
        ("log_uniform", {"input_layout": "replicated"}),
        ("log_uniform", {"static_batch": True}),
        ("composed", {"class_weight": torch.linspace(0.5, 2.0, C), "bias": False}),
    ],
)
def test_numbers_are_those_without(sampler: str, options: dict[str, Any], algorithm: str) -> None:
    options = {"algorithm": algorithm, **options}
    without = run_ranks(3, trained, False, sampler, options)
    for a, b in zip(run_ranks(3, trained, True, sampler, options), without, strict=True):
        assert torch.equal(a, b)


def exchanged(rank: int, size: int, algorithm: str) -> tuple[list[str], list[str]]:
    """The names of all exchanges in prefetch, and in the forward pass behind it."""
    head = ShardedSampledSoftmaxLoss(D, C, S, torch.ones(C), draw="composed", algorithm=algorithm)
    seen: list[str] = []

    class Watched(Ranks):
        def exchange(self, x: Tensor, give: Any, take: Any, what: str) -> Any:
            seen.append(what)
            return Ranks.exchange(self, x, give, take, what)

    ranks = head.shard.ranks
    head.shard.ranks = Watched(ranks.group, ranks.rank, ranks.size, ranks.mesh)
    h, target = batch(rank, 0)
    head.prefetch(target)
    before = list(seen)
    head(h, target)
    return before, seen[len(before) :]


def test_rows_travel_before_the_input_is_there() -> None:
    for before, behind in run_ranks(2, exchanged, "fetch"):
        assert before.count("rows") == 2 and not behind, (before, behind)
    assert run_ranks(2, exchanged, "gather") == [([], [])] * 2


def faulty(rank: int, size: int, fault: str) -> list[str]:
    """The error of a rank where the last one is at fault, and of a step behind it."""
    last = rank == size - 1
    head = ShardedSampledSoftmaxLoss(
        D, C, S, torch.arange(1.0, C + 1), draw="composed", seed=1, algorithm="fetch"
    )
    h, target = batch(rank, 0)

    def run() -> None:
        if fault == "alone" and not last:
            head(h, target)
        head.train(not (fault == "eval" and last))
        wrong = torch.full_like(target, C) if fault == "bad target" and last else target
        head.prefetch(wrong, num_true=2 if fault == "shape" and last else None)
        head.train()
        if fault == "twice":
            head.prefetch(target)
        if fault == "step" and last:
            with torch.no_grad():
                head.weight.add_(1.0)
        if fault == "data" and last:  # as for the averages of an EMA
            head.weight.data = head.weight.data + 1.0
        if fault == "update":
            head.sampler.update(head.shard.classes + 1)  # type: ignore[operator]
        given = torch.Generator() if fault == "generator" else None
        if fault == "type" and last:
            head(h, target.tolist())
        other = (target + 1) % C if fault == "target" and last else target
        head(h[1:], other[1:]) if fault == "rows" and last else head(h, other, generator=given)

    found = []
    try:
        run()
    except Exception as error:
        found.append(f"{type(error).__name__}: {error}")
    head.train().prefetch(None)
    head(h, target)  # all ranks can go on
    return found


FAULTS = {
    "target": r"ValueError: .*target must be the one that was prefetched.*on rank 2 of 3",
    "rows": r"ValueError: .*target must be the one that was prefetched.*on rank 2 of 3",
    "type": r"TypeError: .*target must be a Tensor, got list.*on rank 2 of 3",
    "bad target": r"IndexError: .*target must be in \[0, C=41\).*on rank 2 of 3",
    "shape": r"ValueError: .*target must be \[\*, num_true=2\].*on rank 2 of 3",
    "step": r"ValueError: .*parameters have changed since prefetch.*on rank 2 of 3",
    "data": r"ValueError: .*parameters have changed since prefetch.*on rank 2 of 3",
    "update": r"ValueError: .*sampler was updated between prefetch and the forward pass",
    "twice": r"ValueError: .*prefetch was called twice",
    "eval": r"ValueError: .*prefetch is for training.*on rank 2 of 3",
    "generator": r"ValueError: .*generator must be given to prefetch",
    "alone": r"RuntimeError: .*ranks are at different places.*forward.*prefetch",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_rank_is_the_same_error_on_all(fault: str) -> None:
    found = run_ranks(3, faulty, fault)
    assert all(f == found[0] and len(f) == 1 for f in found), found
    assert re.match(FAULTS[fault], found[0][0], re.DOTALL), found


def steps_not_taken(rank: int, size: int) -> list[Tensor]:
    """The loss of a first step; of one that was prefetched, forgotten and begun again; of a copy
    and of another head with the state, both from between prefetch and the forward pass."""
    h, target = batch(rank, 0)

    def head(seed: int = 1) -> ShardedSampledSoftmaxLoss:
        return ShardedSampledSoftmaxLoss(D, C, S, seed=seed, algorithm="fetch")

    first, forgotten, other = head(), head(), head(seed=2)
    forgotten.prefetch(target)
    forgotten.prefetch(None)
    forgotten.prefetch(target)
    other.load_state_dict(forgotten.state_dict())
    heads = (first, forgotten, copy.deepcopy(forgotten), other)
    losses = [one(h, target).detach() for one in heads]
    return losses + [one(h, target).detach() for one in heads]


def test_a_step_that_was_only_prefetched_does_not_count() -> None:
    for losses in run_ranks(2, steps_not_taken):
        assert len(set(map(float, losses[:4]))) == 1, losses
        assert len(set(map(float, losses[4:]))) == 1, losses
        assert losses[0] != losses[4]
