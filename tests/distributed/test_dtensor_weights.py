"""Weights that are DTensors in the functions of one process: gathered, with averaged gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor

import sampled_softmax_cuda as ssc
from helpers.rank_threads import run_ranks

C, D, S = 13, 6, 5


def values(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def batch(rank: int, same: bool) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Rows and samples of a rank, or the same on all."""
    seed = 0 if same else rank
    target = torch.randint(C, (4,), generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(50 + seed)
    samples = ssc.UniformSampler(C).sample(target, S, generator=generator)
    return values(100 + seed, 4, D), target, samples


LOSSES: dict[str, Any] = {
    "sampled": lambda w, b, x, t, s: ssc.sampled_softmax_loss(x, w, t, s, bias=b),
    "rows": lambda w, b, x, t, s: ssc.sampled_softmax_loss(
        x, w, t, s, bias=b, reduction="none", temperature=0.5
    ).sum(),
    "nce": lambda w, b, x, t, s: ssc.sampled_softmax_loss(x, w, t, s, bias=b, objective="nce"),
    "cosine": lambda w, b, x, t, s: ssc.sampled_softmax_loss(x, w, t, s, cosine=True),
    "exact": lambda w, b, x, t, s: ssc.exact_cross_entropy(x, w, t, bias=b),
    "log_prob": lambda w, b, x, t, s: ssc.log_prob(x, w, t, bias=b).sum(),
    "logits": lambda w, b, x, t, s: ssc.logits(x, w, bias=b).square().sum(),
}


def gradients(rank: int, size: int, name: str, place: str, same: bool) -> None:
    shape, placements = {
        "rows": ((size,), [Shard(0)]),
        "replicated": ((size,), [Replicate()]),
        "2-D": ((2, size // 2), [Replicate(), Shard(0)]),
    }[place]
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("a", "b")[: len(shape)])
    full = [values(1, C, D).requires_grad_(), values(2, C).requires_grad_()]
    own = [
        distribute_tensor(x.detach(), mesh, placements).requires_grad_()  # type: ignore[arg-type]
        for x in full
    ]
    loss = LOSSES[name](*own, *batch(rank, same))
    truth = [LOSSES[name](*full, *batch(r, same)) for r in range(size)]
    assert torch.allclose(loss, truth[rank], rtol=1e-12)
    loss.backward()
    (torch.stack(truth).sum() / size).backward()
    for x, y in zip(own, full, strict=True):
        if y.grad is None:
            assert x.grad is None
            continue
        assert isinstance(x.grad, DTensor) and x.grad.placements == tuple(placements)
        assert torch.allclose(x.grad.full_tensor(), y.grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("same", [False, True], ids=["own rows", "the same rows"])
@pytest.mark.parametrize("place", ["rows", "replicated", "2-D"])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_the_average(name: str, place: str, same: bool) -> None:
    run_ranks(4, gradients, name, place, same)


def modules(rank: int, size: int) -> None:
    """A head whose parameters were distributed, in both modes, and its optimizer."""
    mesh = init_device_mesh("cpu", (size,))
    head = ssc.SampledSoftmaxLoss(D, C, S, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(values(1, C, D))
        head.bias.copy_(values(2, C))  # type: ignore[union-attr]

    def shard(name: str, module: nn.Module, mesh: Any) -> None:
        for key, p in list(module.named_parameters(recurse=False)):
            setattr(module, key, nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])))

    distribute_module(head, mesh, shard)
    x, target, _ = batch(rank, same=False)
    head(x, target).backward()
    assert isinstance(head.weight.grad, DTensor) and isinstance(head.bias.grad, DTensor)
    full = [head.weight.full_tensor(), head.bias.full_tensor()]
    exact = ssc.exact_cross_entropy(x, full[0], target, bias=full[1])
    assert torch.allclose(head.eval()(x, target), exact)
    assert torch.equal(head.topk(x, 3).indices, ssc.topk(x, full[0], 3, bias=full[1]).indices)
    torch.optim.SGD(head.parameters(), lr=0.1).step()


def test_a_head_of_dtensors() -> None:
    run_ranks(3, modules)


def refused(rank: int, size: int) -> None:
    mesh = init_device_mesh("cpu", (size,))
    x, target, samples = batch(rank, same=True)
    rows = distribute_tensor(values(1, C, D), mesh, [Shard(0)])
    columns = distribute_tensor(values(1, C, D), mesh, [Shard(1)])
    with pytest.raises(TypeError, match=r"sparse_grad=True, but weight is a DTensor.*use ssc\.dis"):
        ssc.sampled_softmax_loss(x, rows, target, samples, sparse_grad=True)
    bias = distribute_tensor(values(2, C), mesh, [Shard(0)])
    plain = values(1, C, D)
    with pytest.raises(TypeError, match=r"sparse_grad=True, but bias is a DTensor"):
        ssc.sampled_softmax_loss(x, plain, target, samples, bias=bias, sparse_grad=True)
    for loss in (
        lambda: ssc.sampled_softmax_loss(x, columns, target, samples),
        lambda: ssc.topk(x, columns, 3),
    ):
        with pytest.raises(TypeError, match=r"weight must be a plain tensor.*Shard\(dim=1\)"):
            loss()
    with pytest.raises(TypeError, match=r"got a DTensor: give the parameters of fully_shard to"):
        ssc.optim.AdamW([rows.requires_grad_()])
    with pytest.raises(TypeError, match=r"class_weight must be a plain tensor, got a DTensor"):
        ssc.sampled_softmax_loss(x, rows, target, samples, class_weight=bias)


def test_refused() -> None:
    run_ranks(2, refused)
