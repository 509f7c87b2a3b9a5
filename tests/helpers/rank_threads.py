"""Ranks of torch.distributed as threads of one process: many, cheap, and with a debugger."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed
from torch.testing._internal.distributed.multi_threaded_pg import (
    ProcessLocalGroup,
    _install_threaded_pg,
    _uninstall_threaded_pg,
)

_LIMIT = 120  # seconds


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """The results of function(rank, size, *arguments) of every rank, each in a thread of its own.

    Raises:
        Exception: that of the first rank that has one.
    """
    results: list[Any] = [None] * size
    errors: dict[int, BaseException] = {}
    torch._C._distributed_c10d._set_thread_isolation_mode(True)
    world = _install_threaded_pg()
    store = distributed.HashStore()

    def run(rank: int) -> None:
        try:
            distributed.init_process_group("threaded", rank=rank, world_size=size, store=store)
            results[rank] = function(rank, size, *arguments)
        except BaseException as error:
            errors[rank] = error
            ProcessLocalGroup.exception_handle(error)
        finally:
            if world.default_pg is not None:
                distributed.destroy_process_group()

    try:
        threads = [threading.Thread(target=run, args=(r,), daemon=True) for r in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_LIMIT)
        alive = [rank for rank, thread in enumerate(threads) if thread.is_alive()]
    finally:
        _uninstall_threaded_pg()
        ProcessLocalGroup.reset()
        torch._C._distributed_c10d._set_thread_isolation_mode(False)
    if errors:
        raise errors[min(errors)]
    if alive:
        raise TimeoutError(f"ranks {alive} of {size} did not come to an end")
    return results


def dense(gradient: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """A gradient of any layout as a dense one; zeros for none."""
    if gradient is None:
        return torch.zeros_like(like)
    return gradient.to_dense() if gradient.is_sparse else gradient
