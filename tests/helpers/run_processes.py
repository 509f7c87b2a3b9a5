"""Ranks of torch.distributed as processes of their own, of which each leaves a file."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

LIMIT = 150  # seconds; the slowest take 10 on cores of their own


def run_processes(size: int, function: Callable[..., None], folder: Path, *args: Any) -> list[Any]:
    """Each rank's file, after function(rank, size, folder, *args) has ended on all of them."""
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=function, args=(rank, size, folder, *args)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + LIMIT
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    late = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
    assert not late, f"ranks {late} of {size} were not through after {LIMIT} s"
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]
