"""A run that gives the same numbers on any number of ranks, and stops and goes on: for tests of
optimizers' states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import sampled_softmax_cuda as ssc
from sampled_softmax_cuda.distributed import ShardedSampledSoftmaxLoss, register_optimizer

C, D, S, B = 13, 6, 4, 3
BATCHES = 4  # of a step, of all ranks together

# Whose debts, settled or loaded, are paid in other numbers of steps: equal to rounding.
OWING = ("AdamW, decay", "AdamW, replay", "RowWiseAdam", "SGD, replay")

Make = Callable[[Any], torch.optim.Optimizer]


def adamw(skipped: str) -> Make:
    return lambda p: ssc.optim.AdamW(p, lr=0.1, weight_decay=0.1, skipped=skipped)  # type: ignore[arg-type]


# Each with sparse_grad, and how far a run that goes on may be from one that never stopped.
OPTIMIZERS: dict[str, tuple[Make, bool, float]] = {
    "Adagrad": (lambda p: ssc.optim.Adagrad(p, lr=0.5), True, 1e-12),
    "RowWiseAdagrad": (lambda p: ssc.optim.RowWiseAdagrad(p, lr=0.5), True, 1e-12),
    "AdamW, decay": (adamw("decay"), True, 1e-12),
    "AdamW, freeze": (adamw("freeze"), True, 1e-12),
    "AdamW, replay": (adamw("replay"), True, 1e-7),  # to first order in eps
    "RowWiseAdam": (lambda p: ssc.optim.RowWiseAdam(p, lr=0.1), True, 1e-12),
    "SGD, replay": (
        lambda p: ssc.optim.SGD(p, lr=0.1, momentum=0.9, skipped="replay"),
        True,
        1e-12,
    ),
    "dense AdamW": (adamw("decay"), False, 1e-12),
    "torch Adagrad": (lambda p: torch.optim.Adagrad(p, lr=0.5), True, 1e-12),
    "torch SparseAdam": (lambda p: torch.optim.SparseAdam(p, lr=0.1), True, 1e-12),
    "torch SGD": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), True, 1e-12),
    "torch AdamW": (lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True), False, 1e-12),
}


class Run:
    """A body and a head on this rank, with one optimizer, or the head's alone for SparseAdam.

    Args:
        register: whether the optimizer is registered.
        sharded: whether the body is under fully_shard; else its gradients are averaged here.
    """

    def __init__(
        self,
        name: str,
        seed: int,
        register: bool = True,
        classes: int = C,
        sharded: bool = False,
        **options: Any,
    ) -> None:
        make, sparse, _ = OPTIMIZERS[name]
        head = ShardedSampledSoftmaxLoss(
            D, classes, S, seed=seed, sparse_grad=sparse, dtype=torch.float64, **options
        )
        body = nn.Linear(D, D, dtype=torch.float64)
        with torch.no_grad():
            body.weight.copy_(torch.eye(D) + seed)
            body.bias.fill_(seed)
        self.model = nn.ModuleDict({"body": body, "head": head})
        self.sharded = sharded
        if sharded:
            fully_shard(body)
        if name == "torch SparseAdam":
            body.requires_grad_(False)
        self.optimizer = make([p for p in self.model.parameters() if p.requires_grad])
        if register:
            self.optimizer = register_optimizer(self.optimizer, head)

    @property
    def head(self) -> Any:
        return self.model["head"]

    def train(self, begin: int, end: int) -> None:
        """Steps on batches that do not depend on the number of ranks."""
        together = distributed.is_initialized()
        rank = distributed.get_rank() if together else 0
        size = distributed.get_world_size() if together else 1
        for step in range(begin, end):
            parts = [torch.Generator().manual_seed(50 * step + n) for n in range(BATCHES)]
            mine = [
                (torch.randn(B, D, generator=g), torch.randint(12, (B,), generator=g))
                for g in parts
            ][rank::size]
            x = torch.cat([torch.empty(0, D), *(x for x, _ in mine)]).double()
            target = torch.cat([torch.empty(0, dtype=torch.int64), *(t for _, t in mine)])
            self.optimizer.zero_grad()
            self.head(self.model["body"](x), target).backward()
            for p in self.model["body"].parameters():
                if together and p.requires_grad and not self.sharded:
                    distributed.all_reduce(p.grad)
                    p.grad /= size
            self.optimizer.step()

    def full(self) -> list[torch.Tensor]:
        """All that was trained, the same on all ranks."""
        if hasattr(self.optimizer, "settle"):
            self.optimizer.settle()
        full = self.head.full_state_dict(on_all_ranks=True)
        body = [whole(x) for x in self.model["body"].state_dict().values()]
        return [full["weight"], full["bias"], *body]

    def save(self, folder: str) -> None:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder)

    def load(self, folder: str) -> None:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        state = {"model": model, "optimizer": optimizer}
        dcp.load(state, checkpoint_id=folder)
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )


def whole(x: torch.Tensor) -> torch.Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x.clone()


def saved(rank: int, size: int, name: str, folder: str, *options: Any) -> list[torch.Tensor]:
    """Trained 3 steps, saved, and trained on without a stop."""
    run = Run(name, 1, *options)
    run.train(0, 3)
    run.save(folder)
    run.train(3, 6)
    return run.full()


def resumed(rank: int, size: int, name: str, folder: str, *options: Any) -> list[torch.Tensor]:
    """Other values at first, loaded, and trained on."""
    run = Run(name, 2, *options)
    run.load(folder)
    run.train(3, 6)
    return run.full()


def uninterrupted(name: str) -> list[torch.Tensor]:
    """One process; with "decay" the loss sees whether rows were settled, so they are."""
    run = Run(name, 1)
    run.train(0, 3)
    run.optimizer.state_dict()
    run.train(3, 6)
    return run.full()


def distance(found: list[Any], expected: list[Any]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(float((x - y).abs().max()) for x, y in pairs)
