"""Samplers in several processes: DistributedDataParallel's defaults, sync, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

import sampled_softmax_cuda as ssc
from helpers.state_process import BATCH, STEPS, C, two_processes
from helpers.streaming_process import learn_and_merge, zipf_stream

SEEN = STEPS * BATCH


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(two_processes, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("kind", ["counted", "mixed"])
def test_each_process_counts_for_itself_until_they_sync(
    ranks: list[dict[str, Any]], kind: str
) -> None:
    total = torch.ones(C, dtype=torch.int64)
    for rank, result in enumerate(ranks):
        added = result["ddp"][f"{kind} own"] - 1
        assert int(added[10 * rank : 10 * rank + 10].sum()) == int(added.sum()) == SEEN
        total += added
    for result in ranks:
        assert torch.equal(result["ddp"][f"{kind} once"], total)
        assert torch.equal(result["ddp"][f"{kind} twice"], total)  # nothing counts twice
    assert torch.equal(*(result["ddp"][f"{kind} table"] for result in ranks))


def test_each_process_has_its_own_queue(ranks: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(ranks):
        assert bool((result["ddp"]["queue"] // 10 == rank).all())


def test_nothing_is_sent_around_in_a_step(ranks: list[dict[str, Any]]) -> None:
    for result in ranks:
        assert result["ddp"]["buffers"] == 0
        assert result["ddp"]["written"] == 0


def test_unlike_starts_are_refused(ranks: list[dict[str, Any]]) -> None:
    for result in ranks:
        assert "don't start from the same counts" in result["unlike"]


def test_distributed_checkpoints(ranks: list[dict[str, Any]]) -> None:
    for result in ranks:
        assert all(result["checkpoints"].values()), result["checkpoints"]


def test_processes_merge_what_they_have_learnt(tmp_path: Path) -> None:
    multiprocessing.spawn(learn_and_merge, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    streams = [zipf_stream(60, 10 + rank) for rank in (0, 1)]
    targets = torch.cat([draw(32) for draw in streams for _ in range(80)])
    expected = 1 + torch.bincount(targets, minlength=60)
    for result in (first, second):
        assert torch.equal(result["counts"], expected)
        assert torch.equal(result["joined"], expected)
        assert result["seen"] == (80 * 33, 80 * 33)
        assert result["idempotent"]
    for a, b in zip(first["drawn"], second["drawn"], strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(first["log_prob"], second["log_prob"])
    q = ssc.LogUniformSampler(60).log_prob(torch.arange(60))
    assert float((first["log_prob"][:60] - q).abs().mean()) < 0.15
    # A class that one process alone has seen, once in each of its batches, the other knows too.
    torch.testing.assert_close(first["log_prob"][60:].exp(), torch.full((2,), 1 / 33))
