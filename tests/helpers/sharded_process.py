"""A process of test_ddp.py with fully_shard and DTensors, and the model of all its cases.

`cases` gives functions that return a dictionary of plain values, as those of ddp_process.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import sampled_softmax_cuda as ssc

C, D, S = 60, 8, 20
WORLD = 2


class Model(nn.Module):
    """A body and a head."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.body = nn.Linear(D, D)
        self.head = ssc.SampledSoftmaxLoss(D, C, S, **{"sparse_grad": True, **options})

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = self.head(self.body(x), target)
        return loss


def batch_of(rank: int, number: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows [6, D] and targets of rank 0; rank 1 has none in every second batch."""
    generator = torch.Generator().manual_seed(10 * number + rank)
    rows = 0 if rank == 1 and number % 2 == 0 else 6
    x = torch.randn(rows, D, generator=generator).to(dtype)
    return x, torch.randint(C, (rows,), generator=generator)


def loss_of(model: Any, rank: int, number: int, dtype: torch.dtype) -> Tensor:
    """The loss of a rank's batch, with negatives of its own."""
    torch.manual_seed(100 * number + rank)
    loss: Tensor = model(*batch_of(rank, number, dtype))
    return loss.sum()


def _sharded(sparse_grad: bool, *, head_alone: bool, ignored: bool = False) -> dict[str, Any]:
    """A step of a model under fully_shard; what the head's gradient is."""
    torch.manual_seed(0)
    model = Model(sparse_grad=sparse_grad)
    single = copy.deepcopy(model)
    mesh = init_device_mesh("cpu", (WORLD,))
    options: dict[str, Any] = {"mesh": mesh}
    if head_alone:
        fully_shard(model.head, **options)
    if ignored:
        options["ignored_params"] = set(model.head.parameters())
    fully_shard(model, **options)
    rank = distributed.get_rank()
    loss_of(model, rank, 1, torch.float32).backward()
    grad: Any = model.head.weight.grad
    if ignored:  # what docs/sparse_gradients.md says: reduce them yourself
        for p in model.head.parameters():
            distributed.all_reduce(p.grad)
            p.grad /= WORLD
        grad = model.head.weight.grad
    for other in range(WORLD):
        (loss_of(single, other, 1, torch.float32) / WORLD).backward()
    full = grad.full_tensor() if hasattr(grad, "full_tensor") else grad.to_dense()
    expected = single.head.weight.grad.to_dense()
    return {"right": torch.allclose(full, expected, atol=1e-6), "type": type(grad).__name__}


def _exact(registered: bool) -> dict[str, Any]:
    """topk, logits and log_prob of a head under fully_shard, and its exact loss."""
    torch.manual_seed(0)
    model = Model(sparse_grad=False)
    single = copy.deepcopy(model)
    mesh = init_device_mesh("cpu", (WORLD,))
    fully_shard(model.head, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if registered:
        for method in ("topk", "logits", "log_prob"):
            register_fsdp_forward_method(model.head, method)
    x, target = batch_of(0, 1, torch.float32)
    model.eval()
    single.eval()
    with torch.no_grad():
        first = model.head.topk(x, 3) if not registered else None  # ahead of the first forward pass
        exact = torch.allclose(model(x, target), single(x, target))
        best = model.head.topk(x, 3)
        logits = model.head.logits(x)
        log_prob = model.head.log_prob(x, target)
    truth = single.head.topk(x, 3).indices
    return {
        "exact": exact,
        "topk": torch.equal(best.indices, truth),
        "topk at first": first is None or torch.equal(first.indices, truth),
        "logits": torch.allclose(logits, single.head.logits(x)),
        "log_prob": torch.allclose(log_prob, single.head.log_prob(x, target)),
    }


def _dtensor(argument: str, full: bool = False) -> dict[str, Any]:
    """The function with one DTensor among its arguments."""
    mesh = init_device_mesh("cpu", (WORLD,))
    torch.manual_seed(0)
    x, target = torch.randn(6, D), torch.randint(C, (6,))
    weight, bias = torch.randn(C, D), torch.randn(C)
    ids = torch.arange(S)
    given = {"input": x, "weight": weight, "bias": bias, "target": target, "samples.ids": ids}
    sharded = distribute_tensor(given[argument], mesh, [Shard(0)])
    if sharded.is_floating_point():
        sharded.requires_grad_()
    given[argument] = sharded.full_tensor() if full else sharded
    samples = ssc.Samples(given.pop("samples.ids"))
    ssc.sampled_softmax_loss(**given, samples=samples).backward()
    return {"grad": type(sharded.grad).__name__}


def _draw_for_dtensor() -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (WORLD,))
    target = distribute_tensor(torch.arange(6), mesh, [Shard(0)])
    ssc.UniformSampler(C).sample(target, S)
    return {}


def _distributed_module(how: str) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (WORLD,))
    model = Model()
    if how == "ColwiseParallel":
        parallelize_module(model, mesh, {"head": ColwiseParallel()})
    else:
        distribute_module(model.head, mesh)
    model(torch.randn(6, D), torch.randint(C, (6,)))
    return {}


def cases() -> dict[str, Callable[[], dict[str, Any]]]:
    """Every case by name."""
    result: dict[str, Callable[[], dict[str, Any]]] = {
        "fully_shard": lambda: _sharded(False, head_alone=False),
        "fully_shard, head alone": lambda: _sharded(False, head_alone=True),
        "fully_shard, sparse": lambda: _sharded(True, head_alone=False),
        "fully_shard, sparse, head alone": lambda: _sharded(True, head_alone=True),
        "fully_shard, ignored": lambda: _sharded(True, head_alone=False, ignored=True),
        "topk": lambda: _exact(False),
        "topk, registered": lambda: _exact(True),
        "full_tensor": lambda: _dtensor("weight", full=True),
        "drawn for a DTensor": _draw_for_dtensor,
        "ColwiseParallel": lambda: _distributed_module("ColwiseParallel"),
        "distribute_module": lambda: _distributed_module("distribute_module"),
    }
    for argument in ("input", "target", "samples.ids"):
        result[f"DTensor {argument}"] = lambda argument=argument: _dtensor(argument)
    return result
