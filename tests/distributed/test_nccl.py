"""A sharded head over NCCL, one rank for each GPU, as it is over gloo on the CPU.

The cases named "nccl" are what only NCCL and GPUs can prove; docs/distributed.md lists them, and
`make gpu-check` runs them. One GPU is enough to run them all, and two for anything to travel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from helpers import rank_process
from helpers.rank_losses import PROCESS_CASES
from helpers.rank_process import TIMEOUT, Seen
from helpers.run_processes import run_processes

# Faults that a GPU shows too: its targets are not looked at, and a killed rank ends its group.
FAULTS = {
    "other_options": ("ValueError", "temperature must be the same on all ranks"),
    "skipped_backward": ("RuntimeError", "ranks are at different places"),
    "eval_on_one": ("ValueError", "loss must be the same on all ranks"),
}


def ranks_of(backend: str, least: int = 1) -> int:
    """How many ranks the test starts; without as many GPUs it is skipped."""
    if backend == "gloo":
        return 2
    count = torch.cuda.device_count()
    if count < least or not distributed.is_nccl_available():
        pytest.skip(f"{count} GPUs, {least} wanted, over NCCL")
    return count


def test_losses_and_gradients_over_nccl(tmp_path: Path) -> None:
    size = ranks_of("nccl")
    for found in run_processes(size, rank_process.run_losses, tmp_path, "nccl"):
        assert list(found) == list(PROCESS_CASES)
        assert max(found.values()) < 1e-11, found


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_a_training_is_that_of_one_process(backend: str, tmp_path: Path) -> None:
    size = ranks_of(backend)
    for found in run_processes(size, rank_process.run_trainings, tmp_path, backend):
        assert list(found) == ["fetch", "gather"]
        assert max(found.values()) < 1e-11, found


def test_all_ranks_raise_the_same_error_over_nccl(tmp_path: Path) -> None:
    """As over gloo in test_rank_processes.py."""
    size = ranks_of("nccl", least=2)
    arguments: tuple[Any, ...] = ("fetch", "nccl", tuple(FAULTS))
    found = run_processes(size, rank_process.run_faults, tmp_path, *arguments)
    for fault, (kind, text) in FAULTS.items():
        seen = [Seen(*of_rank[fault]) for of_rank in found]
        assert {rank.kind for rank in seen} == {kind}
        assert all(text in rank.text for rank in seen)
        assert max(rank.seconds for rank in seen) < TIMEOUT / 6
