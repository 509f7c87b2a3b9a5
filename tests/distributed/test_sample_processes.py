"""Samplers in several processes: DistributedDataParallel's defaults, sync, checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import multiprocessing

from helpers.state_process import BATCH, STEPS, C, two_processes

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
