"""One of the processes of a sharded head that test_rank_processes.py and test_nccl.py start.

In a module of its own because a process imports what its function's module imports. The faults
come one after the other in one group, because all but the last leave it usable.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed, nn

import sampled_softmax_cuda as ssc
from sampled_softmax_cuda.distributed import ShardedSampledSoftmaxLoss, clip_grad_norm_

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


def _join(rank: int, size: int, folder: Path, backend: str) -> torch.device:
    """This rank's device, once it is in the group."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    distributed.init_process_group(
        backend,
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=TIMEOUT),
    )
    return device


def run_faults(
    rank: int,
    size: int,
    folder: Path,
    algorithm: str,
    backend: str = "gloo",
    names: Sequence[str] = tuple(FAULTS),
) -> None:
    """Saves what this rank has seen of each fault, {name: Seen}, before the next one."""
    torch.set_default_device(_join(rank, size, folder, backend))
    seen: dict[str, tuple[Any, ...]] = {}
    for name in names:
        fault = FAULTS[name]
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


def run_losses(rank: int, size: int, folder: Path, backend: str = "gloo") -> None:
    """Saves the largest difference from one process, {case: error}, of some cases."""
    device = _join(rank, size, folder, backend)
    found = {
        name: error_of_rank(rank, size, *case, device=device)
        for name, case in PROCESS_CASES.items()
    }
    _leave(found, folder / f"{rank}.pt")


def run_trainings(rank: int, size: int, folder: Path, backend: str) -> None:
    """Saves the largest difference from one process after a few steps, {algorithm: error}."""
    device = _join(rank, size, folder, backend)
    with device:
        found = {
            algorithm: _error_of_training(rank, size, algorithm)
            for algorithm in ("fetch", "gather")
        }
    _leave(found, folder / f"{rank}.pt")


def _leave(found: dict[str, float], path: Path) -> None:
    torch.save(found, path)
    distributed.barrier()
    distributed.destroy_process_group()


def _error_of_training(rank: int, size: int, algorithm: str) -> float:
    """Largest difference of weights, of body and head, after steps on all ranks and on one."""
    for alone in range(size):  # all ranks make all groups
        group = distributed.new_group([alone])
        if alone == rank:
            own_group = group
    sharded = _trained(None, slice(rank, None, size), algorithm)
    single = _trained(own_group, slice(None), algorithm)
    pairs = zip(sharded, single, strict=rank == 0)  # which has the whole matrix
    return max(float((ours - theirs).abs().max()) for ours, theirs in pairs)


def _trained(
    group: distributed.ProcessGroup | None, rows: slice, algorithm: str
) -> list[torch.Tensor]:
    """Weights of a body under DDP and of all classes after steps on these rows of each batch, with
    what a training has: rows that travel ahead, a clipped norm, a state dict. Rank 0 has all."""
    generator = torch.Generator("cpu").manual_seed(2)
    where = torch.get_default_device()
    torch.manual_seed(0)
    body = nn.parallel.DistributedDataParallel(
        nn.Linear(D, D, dtype=torch.float64), process_group=group
    )
    start = torch.randn(C, D, generator=generator, dtype=torch.float64, device="cpu")
    options: dict[str, Any] = {"mesh": group, "algorithm": algorithm, "dtype": torch.float64}
    head = ShardedSampledSoftmaxLoss(D, C, S, sparse_grad=True, seed=1, **options)
    bias = torch.zeros(C, dtype=torch.float64, device="cpu")
    head.load_full_state_dict({"weight": start.to(where), "bias": bias.to(where)})
    optimizers = [
        torch.optim.SGD(body.parameters(), lr=0.1),
        ssc.optim.AdamW(head.parameters(), lr=0.1),
    ]
    for _ in range(4):
        x = torch.randn(3 * B, D, generator=generator, dtype=torch.float64, device="cpu")
        target = torch.randint(C, (3 * B,), generator=generator, device="cpu")
        x, target = x[rows].to(where), target[rows].to(where)
        head.prefetch(target)
        # The mean over all rows, whatever a rank has of them.
        loss = head(body(x), target)
        loss.backward()
        clip_grad_norm_([body, head], max_norm=0.5)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    exact = head.eval()(body(x), target).detach()
    head.load_state_dict(head.state_dict())
    full = head.full_state_dict()
    if group is None:
        distributed.all_reduce(exact)
        exact /= distributed.get_world_size()
    return [body.module.weight.detach(), exact, *full.values()]
