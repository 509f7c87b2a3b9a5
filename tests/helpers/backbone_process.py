"""A process of test_backbones.py: a sharded head on a backbone that is trained by torch's wrappers.

Every case takes steps of its own way and returns how far its numbers are from those of one process
that has the batches of all ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import sampled_softmax_cuda as ssc
from helpers.rank_threads import dense
from sampled_softmax_cuda.distributed import ShardedSampledSoftmaxLoss, clip_grad_norm_

C, D, S = 31, 8, 9


class Model(nn.Module):
    """A backbone of two blocks, and a head."""

    def __init__(self, head: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.body = nn.Sequential(nn.Linear(D, 2 * D), nn.Tanh(), nn.Linear(2 * D, D)).to(dtype)
        with torch.no_grad():
            for p in self.body.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) / D**0.5)
        self.head = head

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = self.head(self.body(x), target)
        return loss


def batch(rank: int, number: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows that differ in number; the last rank has none in every third batch."""
    rows = 0 if rank == distributed.get_world_size() - 1 and number % 3 == 2 else 2 + 3 * rank
    generator = torch.Generator().manual_seed(100 * number + rank)
    x = torch.randn(rows, D, generator=generator)
    return x.to(dtype), torch.randint(C, (rows,), generator=generator)


class Case:
    """A model over all ranks, and the same in this process alone."""

    def __init__(self, dtype: torch.dtype = torch.float64, **options: Any) -> None:
        self.rank, self.size, self.dtype = (
            distributed.get_rank(),
            distributed.get_world_size(),
            dtype,
        )
        settings = {"sparse_grad": True, "seed": 3, "dtype": dtype}
        self.model = Model(ShardedSampledSoftmaxLoss(D, C, S, **{**settings, **options}), dtype)
        self.divisor = options.get("gradient_divide_factor") or self.size
        for name in ("mesh", "replica_mesh", "input_layout", "gradient_divide_factor"):
            options.pop(name, None)
        alone = [distributed.new_group([r]) for r in range(self.size)][self.rank]
        head = ShardedSampledSoftmaxLoss(D, C, S, mesh=alone, **{**settings, **options})
        self.single = Model(head, dtype)

    @property
    def head(self) -> Any:
        return self.model.head

    def all_ranks(self, number: int) -> tuple[Tensor, Tensor]:
        parts = [batch(r, number, self.dtype) for r in range(self.size)]
        return torch.cat([x for x, _ in parts]), torch.cat([t for _, t in parts])

    def alone(self, numbers: list[int], context: Any = contextlib.nullcontext) -> list[float]:
        """One process's losses; its gradients are the sum over batches."""
        losses = []
        for number in numbers:
            with context():
                loss = self.single(*self.all_ranks(number))
            (loss / len(numbers)).backward()
            losses.append(float(loss))
        return losses

    def errors(self, losses: list[Tensor], truth: list[float]) -> dict[str, float]:
        """How far losses, gradients of the body and of the shard are from those of one process."""
        means = torch.stack([x.detach().double() for x in losses])
        distributed.all_reduce(means)
        body = zip(self.model.body.parameters(), self.single.body.parameters(), strict=True)
        shard = self.head.shard
        head = zip(self.head.parameters(), self.single.head.parameters(), strict=True)
        return {
            "loss": float((means / self.divisor - means.new_tensor(truth)).abs().max()),
            "body": max(_distance(full(p.grad), q.grad) for p, q in body),
            "shard": max(
                _distance(dense(p.grad, p), dense(q.grad, q)[shard.begin : shard.end])
                for p, q in head
            ),
        }


def full(x: Any) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def _distance(x: Tensor, y: Any) -> float:
    return float((x - y).abs().max()) if x.numel() > 0 else 0.0


def ddp(numbers: list[int], autocast: bool = False, **options: Any) -> dict[str, float]:
    """The backbone alone under DDP, with `no_sync` for all batches but the last one."""
    case = Case(**options)
    wrapped = DistributedDataParallel(case.model.body)

    def context() -> Any:
        return torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()

    losses = []
    for number in numbers:
        x, target = batch(case.rank, number, case.dtype)
        with contextlib.nullcontext() if number == numbers[-1] else wrapped.no_sync():
            with context():
                loss = case.head(wrapped(x), target)
            (loss / len(numbers)).backward()
        losses.append(loss)
    return case.errors(losses, case.alone(numbers, context))


def fsdp(
    numbers: list[int], square: bool = False, recompute: bool = False, **options: Any
) -> dict[str, float]:
    """The whole model under fully_shard, which leaves the head out."""
    case = Case(**options)
    shape = (2, case.size // 2) if square else (case.size,)
    names = ("outer", "inner")[-len(shape) :]
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    ignored = set(case.head.parameters())
    if recompute:
        for i in (0, 2):
            case.model.body[i] = checkpoint_wrapper(case.model.body[i])
    for i in (0, 2):
        fully_shard(case.model.body[i], mesh=mesh)
    model: Any = fully_shard(case.model, mesh=mesh, ignored_params=ignored)
    if case.divisor != case.size:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(case.divisor)
    losses = []
    for number in numbers:
        model.set_requires_gradient_sync(number == numbers[-1])
        loss = model(*batch(case.rank, number, case.dtype))
        (loss / len(numbers)).backward()
        losses.append(loss)
    return case.errors(losses, case.alone(numbers))


def tensor_parallel() -> dict[str, float]:
    """A backbone whose layers lie on the ranks, with the same rows on all of them."""
    case = Case(input_layout="replicated")
    mesh = init_device_mesh("cpu", (case.size,))
    plan: Any = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallelize_module(case.model.body, mesh, plan)
    loss = case.model(*case.all_ranks(0))
    loss.backward()
    return case.errors([loss], case.alone([0]))


def square(wrap: Callable[..., dict[str, float]], **options: Any) -> dict[str, float]:
    """Replicas x classes, over which the backbone is data parallel."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "class"))
    return wrap([0, 1], mesh=mesh["class"], replica_mesh=mesh["replica"], **options)


def trained(sharded: bool) -> dict[str, float]:
    """Three steps with clipping, whose norm and weights are those of one process."""
    case = Case()
    wrapped: Any = case.model
    if sharded:
        fully_shard(wrapped, ignored_params=set(case.head.parameters()))
    else:
        body = DistributedDataParallel(case.model.body)

        def wrapped(x: Tensor, target: Tensor) -> Tensor:
            return case.head(body(x), target)  # type: ignore[no-any-return]

    models = [(case.model, clip_grad_norm_), (case.single, ssc.optim.clip_grad_norm_)]
    optimizers = []
    for model, _ in models:
        bodies = torch.optim.SGD(model.body.parameters(), lr=0.5)
        heads = ssc.optim.Adagrad(model.head.parameters(), lr=0.5)
        optimizers.append((bodies, heads))
    error = 0.0
    for number in range(3):
        wrapped(*batch(case.rank, number, case.dtype)).backward()
        case.single(*case.all_ranks(number)).backward()
        norms = []
        for (model, clip), pair in zip(models, optimizers, strict=True):
            norms.append(clip(list(model.parameters()), 0.1))
            for optimizer in pair:
                optimizer.step()
                optimizer.zero_grad()
        error = max(error, float((norms[0] - norms[1]).abs()))
        assert float(norms[0]) > 0.1
    own = slice(case.head.shard.begin, case.head.shard.end)
    pairs = zip(case.model.body.parameters(), case.single.body.parameters(), strict=True)
    return {
        "norm": error,
        "body": max(_distance(full(p), q) for p, q in pairs),
        "shard": _distance(case.head.weight, case.single.head.weight[own]),
    }


def finite_differences() -> dict[str, float]:
    """The derivative along a direction, over all ranks, against a difference of losses."""
    case = Case(sparse_grad=False)
    wrapped = DistributedDataParallel(case.model.body)
    x, target = batch(case.rank, 0, case.dtype)

    def loss() -> Tensor:
        case.head._step = 5  # the same negatives each time
        value: Tensor = case.head(wrapped(x), target)
        return value

    def mean_of(value: Tensor) -> float:
        total = value.detach().clone()
        distributed.all_reduce(total)
        return float(total) / case.size

    loss().backward()
    errors = {}
    for name, module in (("body", case.model.body), ("shard", case.head)):
        generator = torch.Generator().manual_seed(case.rank if name == "shard" else 0)
        parameters = list(module.parameters())
        ways = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        slope = torch.stack(
            [(p.grad * way).sum() for p, way in zip(parameters, ways, strict=True)]
        ).sum()
        if name == "shard":  # every rank has a part of the direction
            distributed.all_reduce(slope)
        values = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                for p, way in zip(parameters, ways, strict=True):
                    p.add_(way, alpha=step)
            values.append(mean_of(loss()))
        with torch.no_grad():
            for p, way in zip(parameters, ways, strict=True):
                p.add_(way, alpha=1e-5)
        difference = (values[0] - values[1]) / 2e-5
        errors[name] = abs(difference - float(slope)) / abs(float(slope))
    return errors


def inside_ddp() -> dict[str, str]:
    """A head that is wrapped with its backbone; shards of one size, or torch refuses them."""
    model = Model(ShardedSampledSoftmaxLoss(D, C + 1, S, dtype=torch.float64), torch.float64)
    try:
        DistributedDataParallel(model)(*batch(distributed.get_rank(), 0, torch.float64))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": "none"}


CASES: dict[int, dict[str, Callable[[], dict[str, Any]]]] = {
    2: {
        "ddp, fetch": lambda: ddp([0], algorithm="fetch"),
        "ddp, gather": lambda: ddp([0], algorithm="gather"),
        "ddp, a rank without rows": lambda: ddp([2]),
        "ddp, no_sync": lambda: ddp([0, 1, 2]),
        "ddp, no_sync, dense": lambda: ddp([0, 1, 2], sparse_grad=False),
        "ddp, autocast": lambda: ddp([0], autocast=True, dtype=torch.float32),
        "fully_shard, fetch": lambda: fsdp([0], algorithm="fetch"),
        "fully_shard, gather": lambda: fsdp([0], algorithm="gather"),
        "fully_shard, a rank without rows": lambda: fsdp([2]),
        "fully_shard, set_requires_gradient_sync": lambda: fsdp([0, 1, 2]),
        "fully_shard, activation checkpoints": lambda: fsdp([0], recompute=True),
        "fully_shard, sums": lambda: fsdp([0], gradient_divide_factor=1.0),
        "ddp, static_batch": lambda: ddp([0, 1, 3], static_batch=True),
        "tensor parallel": tensor_parallel,
        "steps, ddp": lambda: trained(False),
        "steps, fully_shard": lambda: trained(True),
        "finite differences": finite_differences,
        "inside ddp": inside_ddp,
    },
    4: {
        "2-D, ddp": lambda: square(ddp),
        "2-D, fully_shard": lambda: square(fsdp, square=True),
        "2-D, gather": lambda: square(ddp, algorithm="gather"),
        "2-D, dense": lambda: square(ddp, sparse_grad=False),
        "steps, ddp, 4": lambda: trained(False),
        "steps, fully_shard, 4": lambda: trained(True),
    },
}


def run(rank: int, size: int, folder: Path) -> None:
    """All cases of that many ranks, one after the other; their results in a file of each rank."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store{size}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    torch.save({name: case() for name, case in CASES[size].items()}, folder / f"{size}-{rank}.pt")
    distributed.destroy_process_group()
