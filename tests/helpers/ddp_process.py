"""One of two processes of torch.distributed over gloo: what test_ddp.py starts once for its tests.

In a module of its own because a process imports what its function's module imports. `run` goes
through all cases in the same order in both processes; each gives a dictionary of plain values, or
its error as "error".
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

import sampled_softmax_cuda as ssc

from . import sharded_process
from .backends import use_backend
from .sharded_process import WORLD, C, D, Model, S, batch_of, loss_of
from .simt_backend import use_simt


class Tied(nn.Module):
    """A head whose weight is also that of an embedding or a linear layer."""

    def __init__(self, layer: Callable[[], nn.Module], layer_first: bool) -> None:
        super().__init__()
        if layer_first:
            self.layer = layer()
        self.head = ssc.SampledSoftmaxLoss(D, C, S, sparse_grad=True)
        if not layer_first:
            self.layer = layer()
        self.head.weight = self.layer.weight

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        is_linear = isinstance(self.layer, nn.Linear)
        extra = self.layer(x).mean() if is_linear else self.layer(target).mean()
        loss: Tensor = self.head(x, target) + extra
        return loss


class OwnParameter(nn.Module):
    """The function on a parameter that a module of the user's holds."""

    def __init__(self, embedding: bool) -> None:
        super().__init__()
        if embedding:
            self.table = nn.Embedding(C, D, sparse=True)
        else:
            self.weight = nn.Parameter(torch.randn(C, D))
        self.sampler = ssc.UniformSampler(C)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        weight = self.table.weight if hasattr(self, "table") else self.weight
        samples = self.sampler.sample(target, S)
        return ssc.sampled_softmax_loss(x, weight, target, samples, sparse_grad=True)


@dataclass
class Case:
    """Training under DDP, compared with one process that averages the gradients of all ranks."""

    make: Callable[[], nn.Module] = Model
    ddp: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    steps: int = 2
    micro_batches: int = 1
    backend: str = "native"
    compiled: bool = False
    hook: Callable[..., Any] | None = None
    first_in_eval_mode: bool = False
    in_eval_mode: bool = False


def train(rank: int, case: Case) -> dict[str, Any]:
    """Steps under DDP: the largest relative error of a gradient, and the layouts of the head's."""
    torch.manual_seed(0)
    model = case.make().to(case.dtype)
    single = copy.deepcopy(model)
    ddp: Any = DistributedDataParallel(model, **case.ddp)
    if case.hook is not None:
        ddp.register_comm_hook(None, case.hook)
    wrapped = ddp
    if case.compiled:
        ddp = torch.compile(ddp)
    if case.first_in_eval_mode:
        model.eval()
        with torch.no_grad():
            loss_of(ddp, rank, 99, case.dtype)
    for one in (model, single):
        one.train(not case.in_eval_mode)
    error = 0.0
    for step in range(case.steps):
        model.zero_grad()
        single.zero_grad()
        numbers = range(step * case.micro_batches, (step + 1) * case.micro_batches)
        for number in numbers:
            last = number == numbers[-1]
            with contextlib.nullcontext() if last else wrapped.no_sync():
                loss_of(ddp, rank, number, case.dtype).backward()
            for other in range(WORLD):
                (loss_of(single, other, number, case.dtype) / WORLD).backward()
        for p, q in zip(model.parameters(), single.parameters(), strict=True):
            assert p.grad is not None
            assert q.grad is not None
            ours, expected = p.grad.to_dense().double(), q.grad.to_dense().double()
            error = max(error, float((ours - expected).abs().max() / expected.abs().max()))
            with torch.no_grad():
                p.sub_(0.1 * p.grad.to_dense())
                q.copy_(p)
    head: Any = getattr(model, "head", model)
    grads = [p.grad for p in (head.weight, head.bias) if p is not None]
    sparse = [grad.is_sparse for grad in grads]
    return {"error_of_gradients": error, "sparse": sparse, "steps": case.steps}


TRAINING = {
    "head": Case(lambda: ssc.SampledSoftmaxLoss(D, C, S, sparse_grad=True)),
    "model": Case(),
    "no bias": Case(lambda: Model(bias=False)),
    "sum": Case(lambda: Model(reduction="sum")),
    "none": Case(lambda: Model(reduction="none")),
    "dense": Case(lambda: Model(sparse_grad=False)),
    "dense, per row": Case(lambda: Model(sparse_grad=False, per_row=True)),
    "per row": Case(lambda: Model(per_row=True)),
    "distinct": Case(lambda: Model(replacement=False)),
    "weighted": Case(lambda: Model(sampler=torch.arange(1.0, C + 1))),
    "nce": Case(lambda: Model(objective="nce")),
    "cosine": Case(lambda: Model(cosine=True)),
    "smoothing": Case(lambda: Model(objective=ssc.Softmax(label_smoothing=0.1))),
    "no_sync": Case(micro_batches=3),
    "find_unused_parameters": Case(ddp={"find_unused_parameters": True}),
    "static_graph": Case(ddp={"static_graph": True}, steps=3),
    "gradient_as_bucket_view": Case(ddp={"gradient_as_bucket_view": True}),
    "float64": Case(dtype=torch.float64),
    "bfloat16": Case(dtype=torch.bfloat16),
    "float16": Case(dtype=torch.float16),
    "float16, dense": Case(lambda: Model(sparse_grad=False), dtype=torch.float16),
    "allreduce_hook": Case(hook=default_hooks.allreduce_hook),
    "fp16_compress_hook": Case(hook=default_hooks.fp16_compress_hook),
    "compiled": Case(compiled=True),
    "evaluation first": Case(first_in_eval_mode=True),
    "exact loss": Case(first_in_eval_mode=True, in_eval_mode=True),
    "uncoalesced": Case(backend="simt"),
    "reference": Case(backend="reference"),
    "tied, embedding first": Case(lambda: Tied(lambda: nn.Embedding(C, D, sparse=True), True)),
    "tied, head first": Case(lambda: Tied(lambda: nn.Embedding(C, D, sparse=True), False)),
    "tied, linear first": Case(lambda: Tied(lambda: nn.Linear(D, C, bias=False), True)),
    "tied, linear last": Case(lambda: Tied(lambda: nn.Linear(D, C, bias=False), False)),
    "own parameter": Case(lambda: OwnParameter(False)),
}


# --- what else happens in a process group ---------------------------------------------------------


def _unseen() -> dict[str, Any]:
    """The module that tells DDP of sparse gradients shows nowhere else."""
    model = Model()
    head = model.head
    names = [name for name, _ in model.named_parameters()]
    modules = dict(model.named_modules())
    visited: list[nn.Module] = []
    model.apply(visited.append)
    replaced = nn.Parameter(torch.zeros(C, D))
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    torch.save(model, io.BytesIO())
    text = repr(model)
    model.to(torch.float64)
    head.weight = replaced
    ((_, first), *_) = head.named_modules()
    return {
        "names": names,
        "with duplicates": [n for n, _ in model.named_parameters(remove_duplicate=False)],
        "state": list(model.state_dict()),
        "children": [type(child).__name__ for child in head.children()],
        "modules by name": [type(m).__name__ for m in modules.values()],
        "applied to": [type(m).__name__ for m in visited],
        "copies": [[n for n, _ in other.named_parameters()] for other in copies],
        "repr": "SparseRows" in text,
        "follows a new weight": first.weight is replaced,
        "like an embedding": (first.num_embeddings, first.embedding_dim, first.padding_idx),
        "dense": [type(m).__name__ for m in Model(sparse_grad=False).head.modules()],
    }


def _without_ddp() -> dict[str, Any]:
    """A step of a bare head: its gradients still know that they are coalesced."""
    head = ssc.SampledSoftmaxLoss(D, C, S, sparse_grad=True)
    head(torch.randn(6, D), torch.randint(C, (6,))).backward()
    return {"coalesced": head.weight.grad.is_coalesced()}


def _own_table() -> dict[str, Any]:
    """The function on the weight of an nn.Embedding(sparse=True)."""
    model = OwnParameter(True)
    ddp = DistributedDataParallel(model)
    ddp(torch.randn(6, D), torch.randint(C, (6,))).backward()
    return {"sparse": model.table.weight.grad.is_sparse}


def _frozen(rank: int) -> dict[str, Any]:
    """A weight without a gradient; the bias has a sparse one."""
    model = Model()
    model.head.weight.requires_grad_(False)
    ddp = DistributedDataParallel(model)
    ddp(*batch_of(rank, 0, torch.float32)).backward()
    bias = model.head.bias
    return {"weight": model.head.weight.grad is None, "bias": bias.grad.is_sparse}


def _left_out(rank: int) -> dict[str, Any]:
    """A head whose parameters DDP is told to ignore keeps the gradients of its rank."""
    torch.manual_seed(0)
    model = Model()
    single = copy.deepcopy(model)
    names = ["head.weight", "head.bias"]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
    loss_of(DistributedDataParallel(model), rank, 1, torch.float32).backward()
    loss_of(single, rank, 1, torch.float32).backward()
    expected = single.head.weight.grad.to_dense()
    return {"own": torch.equal(model.head.weight.grad.to_dense(), expected)}


def _joined(rank: int) -> dict[str, Any]:
    """Rank 1 has one batch more than rank 0."""
    model = Model()
    ddp = DistributedDataParallel(model)
    with ddp.join():
        for number in range(1, 3 + rank):
            model.zero_grad()
            ddp(*batch_of(0, number, torch.float32)).backward()
    return {"sparse": model.head.weight.grad.is_sparse}


def _outside(loss: Callable[[Any, Tensor, Tensor], Tensor], model: nn.Module) -> dict[str, Any]:
    """A loss that is taken of the module's parameters after DDP's forward pass."""
    ddp = DistributedDataParallel(model)
    x, target = torch.randn(6, D), torch.randint(C, (6,))
    (ddp(x, target) * 0 + loss(ddp.module, x, target)).sum().backward()
    return {}


class Body(OwnParameter):
    """The function's parameter, used only outside of the forward pass."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return x.sum()

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        return OwnParameter.forward(self, x, target)


def _negatives(rank: int) -> dict[str, Any]:
    """The ids that both ranks draw, from one seed and from seeds of their own."""
    sampler, target = ssc.UniformSampler(10**6), torch.tensor([0])

    def same(ids: Tensor) -> bool:
        of_all = [torch.empty_like(ids) for _ in range(WORLD)]
        distributed.all_gather(of_all, ids)
        return torch.equal(*of_all)

    torch.manual_seed(5)
    default = sampler.sample(target, S).ids
    torch.manual_seed(5 + rank)
    own = sampler.sample(target, S).ids
    generator = torch.Generator().manual_seed(5 + rank)
    passed = sampler.sample(target, S, generator=generator).ids
    return {"one seed": same(default), "seed + rank": same(own), "generator": same(passed)}


def _unused_head() -> dict[str, Any]:
    """A step in which no row reaches the head, in a process group of its own."""
    group = [distributed.new_group([rank]) for rank in range(WORLD)][distributed.get_rank()]
    model = Model()
    model.forward = lambda x, target: model.body(x).sum()  # type: ignore[method-assign]
    ddp = DistributedDataParallel(model, process_group=group, find_unused_parameters=True)
    ddp(torch.randn(6, D), torch.randint(C, (6,))).backward()
    return {}


def _optimizer(rank: int, skipped: Any) -> dict[str, Any]:
    """bfloat16 weights after some steps of ssc.optim: the same on both ranks, and the warning of
    rows that catch up where they are read."""
    torch.manual_seed(0)
    head = ssc.SampledSoftmaxLoss(D, C, 8, sparse_grad=True, dtype=torch.bfloat16)
    ddp = DistributedDataParallel(head)
    optimizer = ssc.optim.AdamW(head.parameters(), lr=0.1, skipped=skipped, rounding="stochastic")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(6):
            torch.manual_seed(10 * step + rank)
            optimizer.zero_grad()
            ddp(torch.randn(4, D, dtype=torch.bfloat16), torch.randint(C, (4,))).backward()
            ssc.optim.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
    messages = [str(w.message) for w in caught if "come to differ" in str(w.message)]
    return {"weight": head.state_dict()["weight"].float(), "warned": len(messages) > 0}


def _cases(rank: int) -> dict[str, Callable[[], dict[str, Any]]]:
    return {
        "unseen": _unseen,
        "without DDP": _without_ddp,
        "own table": _own_table,
        "frozen weight": lambda: _frozen(rank),
        "left out": lambda: _left_out(rank),
        "join": lambda: _joined(rank),
        "log_prob outside": lambda: _outside(lambda m, x, t: m.head.log_prob(x, t), Model()),
        "function outside": lambda: _outside(Body.loss, Body(False)),
        "negatives": lambda: _negatives(rank),
        "unused head": _unused_head,
        "optimizer, decay": lambda: _optimizer(rank, "decay"),
        "optimizer, replay": lambda: _optimizer(rank, "replay"),
    }


def _guarded(case: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return case()
    except pytest.skip.Exception as reason:  # the executor of the CUDA kernels isn't built
        return {"skipped": str(reason)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _train_with_backend(rank: int, case: Case) -> dict[str, Any]:
    if case.backend == "native":
        return train(rank, case)
    with use_simt() if case.backend == "simt" else use_backend(case.backend):
        return train(rank, case)


def run(rank: int, folder: Path) -> None:
    """Every case of process `rank`, results in folder/rank.pt."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=30),
    )
    results = {
        name: _guarded(lambda case=case: _train_with_backend(rank, case))  # type: ignore[misc]
        for name, case in TRAINING.items()
    }
    for cases in (_cases(rank), sharded_process.cases()):
        results.update((name, _guarded(case)) for name, case in cases.items())
    torch.save(results, folder / f"{rank}.pt")
    distributed.barrier()
    os._exit(0)  # a reducer that failed in the middle of a step may wait for others for ever
