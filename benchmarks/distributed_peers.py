"""Training steps over several ranks, ours and others, for bench_distributed.

Each takes a `Job` and gives a function that does a step's forward and backward pass on this rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.distributed import _functional_collectives as collectives
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import loss_parallel
from torch.nn.parallel import DistributedDataParallel

import sampled_softmax_cuda as ssc
from sampled_softmax_cuda.distributed import ShardedSampledSoftmaxLoss

Step = Callable[[], None]

# Their names before torch 2.13.
_gather_with_gradient = getattr(
    collectives, "all_gather_single_autograd", collectives.all_gather_tensor_autograd
)
_gather = getattr(collectives, "all_gather_single", collectives.all_gather_tensor)


@dataclass(frozen=True)
class Job:
    """A step of the whole job; the batch is divided among the ranks."""

    classes: int
    width: int
    batch: int
    samples: int

    def rows(self) -> tuple[Tensor, Tensor]:
        """The input [B, D] and target [B] of this rank, the same in each call."""
        size, rank = distributed.get_world_size(), distributed.get_rank()
        g = torch.Generator().manual_seed(rank)
        h = torch.randn(self.batch // size, self.width, generator=g)
        return h.requires_grad_(), torch.randint(self.classes, (h.shape[0],), generator=g)


def _step(job: Job, loss: Callable[[Tensor, Tensor], Tensor], parameters: list[Tensor]) -> Step:
    h, target = job.rows()

    def step() -> None:
        loss(h, target).backward()
        h.grad = None
        for parameter in parameters:
            parameter.grad = None

    return step


def sharded(job: Job, algorithm: Any) -> Step:
    """Ours, classes over ranks."""
    head = ShardedSampledSoftmaxLoss(
        job.width, job.classes, job.samples, algorithm=algorithm, sparse_grad=True, seed=0
    )
    return _step(job, head, list(head.parameters()))


def alone(job: Job) -> Step:
    """Ours, on one process with all classes."""
    head = ssc.SampledSoftmaxLoss(job.width, job.classes, job.samples, sparse_grad=True)
    return _step(job, head, list(head.parameters()))


def data_parallel(job: Job, fully: bool) -> Step:
    """Ours with dense gradients, all classes on every rank, or gathered in each step."""
    torch.manual_seed(0)
    head = ssc.SampledSoftmaxLoss(job.width, job.classes, job.samples)
    if fully:
        fully_shard(head, mesh=init_device_mesh("cpu", (distributed.get_world_size(),)))
        return _step(job, head, list(head.parameters()))
    return _step(job, DistributedDataParallel(head), list(head.parameters()))


class _VocabularyParallel(torch.autograd.Function):
    """Cross entropy of logits [B, S_r] whose columns lie on the ranks, with the logits stored."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        """Target: [B] columns of this rank, -1 for those of others."""
        largest = logits.max(dim=1).values
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        here = (target >= 0).nonzero().flatten()
        exps = torch.exp(logits - largest[:, None])
        sums = torch.zeros(2, logits.shape[0])
        sums[0] = exps.sum(dim=1)
        sums[1, here] = logits[here, target[here]]
        distributed.all_reduce(sums)
        ctx.save_for_backward(exps.div_(sums[0][:, None]), target, here)
        return (largest + torch.log(sums[0]) - sums[1]).mean()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        probabilities, target, here = ctx.saved_tensors
        probabilities[here, target[here]] -= 1.0
        return probabilities.mul_(grads[0] / probabilities.shape[0]), None


def partial_fc(job: Job) -> Step:
    """PartialFC's way: features gathered, targets of the shard always among its samples, logits
    stored, no correction for sampling."""
    size, rank = distributed.get_world_size(), distributed.get_rank()
    own = -(-job.classes // size)
    begin = rank * own
    weight = nn.Parameter(0.01 * torch.randn(min(own, job.classes - begin), job.width))

    def loss(h: Tensor, target: Tensor) -> Tensor:
        group = distributed.group.WORLD
        features = _gather_with_gradient(h, 0, group)
        everyone = _gather(target, 0, group)
        local = everyone - begin
        inside = (local >= 0) & (local < weight.shape[0])
        chosen = torch.rand(weight.shape[0])
        chosen[local[inside]] = 2.0
        ids = chosen.topk(job.samples // size).indices.sort().values
        logits = features @ F.embedding(ids, weight, sparse=True).T
        column = torch.searchsorted(ids, local.clamp(0, weight.shape[0] - 1))
        result: Tensor = _VocabularyParallel.apply(logits, torch.where(inside, column, -1))  # type: ignore[no-untyped-call]
        return result

    return _step(job, loss, [weight])


def all_classes(job: Job) -> Step:
    """torch's `loss_parallel`: the full softmax, its classes over ranks."""
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    weight = distribute_tensor(0.01 * torch.randn(job.classes, job.width), mesh, [Shard(0)])
    parameter = nn.Parameter(weight)
    h, target = job.rows()

    def step() -> None:
        features = DTensor.from_local(h, mesh, [Shard(0)]).redistribute(mesh, [Replicate()])
        everyone = DTensor.from_local(target, mesh, [Shard(0)]).redistribute(mesh, [Replicate()])
        with loss_parallel():
            F.cross_entropy(F.linear(features, parameter), everyone).backward()
        h.grad = parameter.grad = None

    return step


CASES: dict[str, Callable[[Job], Step]] = {
    "ours, fetch": lambda job: sharded(job, "fetch"),
    "ours, gather": lambda job: sharded(job, "gather"),
    "DDP, dense gradient": lambda job: data_parallel(job, False),
    "fully_shard, dense gradient": lambda job: data_parallel(job, True),
    "PartialFC's way": partial_fc,
    "loss_parallel, all classes": all_classes,
}
