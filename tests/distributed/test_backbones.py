"""A sharded head on backbones under DistributedDataParallel, fully_shard and tensor parallelism:
processes over gloo, started once for each number of ranks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

from helpers import backbone_process

_SECONDS = 300  # it takes 20 on cores of its own

_LIMITS = {
    "ddp, autocast": 2e-3,  # the body's gradients of bfloat16 matmuls
    "finite differences": 1e-8,
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The findings of all ranks in each case."""
    folder: Path = tmp_path_factory.mktemp("backbones")
    found: dict[str, list[dict[str, Any]]] = {}
    for size, cases in backbone_process.CASES.items():
        context = multiprocessing.spawn(
            backbone_process.run, (size, folder), nprocs=size, join=False
        )
        end = time.monotonic() + _SECONDS
        while not context.join(timeout=1):
            if time.monotonic() > end:
                for process in context.processes:
                    process.kill()
                pytest.fail(f"the {size} processes were not through after {_SECONDS} s")
        of_ranks = [torch.load(folder / f"{size}-{rank}.pt") for rank in range(size)]
        found.update({name: [of_rank[name] for of_rank in of_ranks] for name in cases})
    return found


def _names() -> list[str]:
    names = [name for cases in backbone_process.CASES.values() for name in cases]
    return [name for name in names if name != "inside ddp"]


@pytest.mark.parametrize("name", _names())
def test_the_numbers_of_one_process(results: dict[str, list[dict[str, Any]]], name: str) -> None:
    limit = _LIMITS.get(name, 1e-13)
    for found in results[name]:
        assert max(found.values()) < limit, found


def test_a_head_inside_of_ddp_is_refused(results: dict[str, list[dict[str, Any]]]) -> None:
    for found in results["inside ddp"]:
        assert "the head must be outside of DistributedDataParallel" in found["error"]
