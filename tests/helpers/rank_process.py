"""One of the processes of a sharded head over gloo that test_rank_processes.py starts.

In a module of its own because a process imports what its function's module imports. The faults
come one after the other in one group, because all but the last leave it usable.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed

from sampled_softmax_cuda.distributed import ShardedSampledSoftmaxLoss

from .rank_losses import PROCESS_CASES, error_of_rank

TIMEOUT = 60.0  # seconds until the backend gives up: an error that takes so long is a hang
C, D, S, B = 60, 8, 16, 5
GUILTY = 1  # the rank that does something wrong


class Seen(NamedTuple):
    """A fault as one rank sees it."""

    kind: str
    """The type of its error; "" for none."""
    text: str
    seconds: float
    """From the start of the faulty step to the error."""


def _head(**options: Any) -> ShardedSampledSoftmaxLoss:
    torch.manual_seed(0)
    return ShardedSampledSoftmaxLoss(D, C, S, sparse_grad=True, seed=1, **options)


def _step(head: ShardedSampledSoftmaxLoss, target: torch.Tensor) -> None:
    head(torch.randn(B, D), target).backward()


def bad_target(rank: int, head: ShardedSampledSoftmaxLoss) -> None:
    """A target that is no class."""
    _step(head, torch.full((B,), C if rank == GUILTY else 1))


def other_options(rank: int, head: ShardedSampledSoftmaxLoss) -> None:
    """Another temperature."""
    head.temperature = 0.5 if rank == GUILTY else 1.0
    _step(head, torch.zeros(B, dtype=torch.int64))


def skipped_backward(rank: int, head: ShardedSampledSoftmaxLoss) -> None:
    """A loss whose backward pass is left out, as after an error of the user's own."""
    loss = head(torch.randn(B, D), torch.zeros(B, dtype=torch.int64))
    if rank != GUILTY:
        loss.backward()
    _step(head, torch.zeros(B, dtype=torch.int64))


def eval_on_one(rank: int, head: ShardedSampledSoftmaxLoss) -> None:
    """One rank evaluates while the others train."""
    head.train(rank != GUILTY)
    head(torch.randn(B, D), torch.zeros(B, dtype=torch.int64))


def killed(rank: int, head: ShardedSampledSoftmaxLoss) -> None:
    """A rank that dies between two steps."""
    if rank == GUILTY:
        os.kill(os.getpid(), signal.SIGKILL)
    _step(head, torch.zeros(B, dtype=torch.int64))


FAULTS: dict[str, Callable[[int, ShardedSampledSoftmaxLoss], None]] = {
    each.__name__: each
    for each in (bad_target, other_options, skipped_backward, eval_on_one, killed)
}


def _join(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=TIMEOUT),
    )


def run_faults(rank: int, size: int, folder: Path, algorithm: str) -> None:
    """Saves what this rank has seen of each fault, {name: Seen}, before the next one."""
    _join(rank, size, folder)
    seen: dict[str, tuple[Any, ...]] = {}
    for name, fault in FAULTS.items():
        head = _head(algorithm=algorithm)
        _step(head, torch.arange(B))
        distributed.barrier()
        began = time.perf_counter()
        error: Exception | None = None
        try:
            fault(rank, head)
        except Exception as caught:
            error = caught
        seconds = time.perf_counter() - began
        kind = "" if error is None else type(error).__name__
        seen[name] = Seen(kind, str(error), seconds)
        torch.save({of: tuple(each) for of, each in seen.items()}, folder / f"{rank}.pt")
    # Without a farewell: the group has lost a rank.
    os._exit(0)


def run_losses(rank: int, size: int, folder: Path) -> None:
    """Saves the largest difference from one process, {case: error}, of some cases."""
    _join(rank, size, folder)
    found = {name: error_of_rank(rank, size, *case) for name, case in PROCESS_CASES.items()}
    torch.save(found, folder / f"{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()
