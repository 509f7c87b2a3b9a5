"""Clipping of gradients of which every rank has a part, against one process."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import sampled_softmax_cuda as ssc
from helpers.rank_threads import dense, run_ranks
from sampled_softmax_cuda.distributed import ShardedSampledSoftmaxLoss, clip_grad_norm_

C, D, S = 13, 6, 4
NORM_TYPES = [2.0, 1.0, 3.5, float("inf")]


def gradient(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def full_gradients(scale: float = 1.0) -> list[torch.Tensor]:
    """Those of the body, and of weight and bias of all classes in the order of rows."""
    shapes = [(D, D), (D,), (C, D), (C,)]
    return [scale * gradient(shape, seed) for seed, shape in enumerate(shapes)]


def expected(gradients: list[torch.Tensor], *arguments: Any) -> list[torch.Tensor]:
    """The norm of one process, and its clipped gradients."""
    parameters = [nn.Parameter(torch.zeros_like(x)) for x in gradients]
    for p, value in zip(parameters, gradients, strict=True):
        p.grad = value.clone()
    norm = ssc.optim.clip_grad_norm_(parameters, *arguments)
    return [norm, *(p.grad for p in parameters if p.grad is not None)]


def given(kind: str, mesh: Any = None, replicas: Any = None) -> tuple[nn.Linear, Any]:
    """A body and a head with those gradients; dense, or row-sparse with rows twice."""
    body = nn.Linear(D, D, dtype=torch.float64)
    head = ShardedSampledSoftmaxLoss(
        D, C, S, seed=0, dtype=torch.float64, mesh=mesh, replica_mesh=replicas
    )
    of_body, of_bias, weight, bias = full_gradients()
    body.weight.grad, body.bias.grad = of_body.clone(), of_bias.clone()
    begin, end = head.shard.begin, head.shard.end
    for p, value in ((head.weight, weight[begin:end]), (head.bias, bias[begin:end])):
        p.grad = value.clone()
        if kind == "sparse":
            rows = torch.arange(end - begin).repeat(2)
            halves = torch.cat((0.25 * value, 0.75 * value))
            p.grad = torch.sparse_coo_tensor(rows[None], halves, value.shape)
    return body, head


def found(norm: torch.Tensor, body: nn.Linear, head: Any) -> list[torch.Tensor]:
    return [norm, body.weight.grad, body.bias.grad, *(dense(p.grad, p) for p in head.parameters())]  # type: ignore[list-item]


def check(results: list[torch.Tensor], truth: list[torch.Tensor], head: Any) -> None:
    begin, end = head.shard.begin, head.shard.end
    own = [*truth[:3], truth[3][begin:end], truth[4][begin:end]]
    for x, y in zip(results, own, strict=True):
        assert torch.allclose(x, y, rtol=1e-12, atol=1e-14)


def clipped(rank: int, size: int, kind: str, norm_type: float, how: str) -> torch.Tensor:
    body, head = given(kind)
    together = nn.ModuleList([body, head])
    what: Any = {
        "modules": [body, head],
        "twice": [together, head, head.weight],
        "parameters": together.parameters(),
    }[how]
    norm = clip_grad_norm_(what, 0.5, norm_type)
    check(found(norm, body, head), expected(full_gradients(), 0.5, norm_type), head)
    return norm


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_the_norm_of_one_process(size: int, kind: str, norm_type: float) -> None:
    for how in ("modules", "twice", "parameters"):
        norms = run_ranks(size, clipped, kind, norm_type, how)
        assert all(torch.equal(norms[0], norm) for norm in norms)


def not_clipped(rank: int, size: int) -> None:
    body, head = given("sparse")
    norm = clip_grad_norm_([body, head], 1e3)
    check(found(norm, body, head), expected(full_gradients(), 1e3), head)


def test_a_small_norm_is_left_alone() -> None:
    run_ranks(3, not_clipped)


def over_replicas(rank: int, size: int) -> torch.Tensor:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "class"))
    body, head = given("sparse", mesh["class"], mesh["replica"])
    norm = clip_grad_norm_([body, head], 0.5)
    check(found(norm, body, head), expected(full_gradients(), 0.5), head)
    return norm


def test_replicas_are_counted_once() -> None:
    norms = run_ranks(4, over_replicas)
    assert all(torch.equal(norms[0], norm) for norm in norms)


def without(rank: int, size: int, who: int) -> None:
    """A rank without gradients of its rows, or all; the same as zeros."""
    body, head = given("dense")
    truth = full_gradients()
    for other in range(size):
        if who in (other, size):
            begin, end = head.shard.rows_of_rank(other)
            truth[2][begin:end] = truth[3][begin:end] = 0.0
    if who in (rank, size):
        head.weight.grad = head.bias.grad = None
    norm = clip_grad_norm_([body, head], 0.5)
    check(found(norm, body, head), expected(truth, 0.5), head)


@pytest.mark.parametrize("who", [0, 2, 3])
def test_ranks_without_gradients(who: int) -> None:
    run_ranks(3, without, who)


def dtensors(rank: int, size: int) -> None:
    """A body of DTensors, as fully_shard makes them, in uneven parts, and on a mesh of 2 x 2."""
    body, head = given("sparse")
    truth = expected(full_gradients(), 0.5, 3.0)
    line, square = init_device_mesh("cpu", (size,)), init_device_mesh("cpu", (2, size // 2))
    places = ((line, [Shard(0)]), (square, [Replicate(), Shard(0)]))
    shards = []
    for p, (mesh, placements) in zip(body.parameters(), places, strict=True):
        shards.append(nn.Parameter(distribute_tensor(p.detach(), mesh, placements)))
        shards[-1].grad = distribute_tensor(p.grad, mesh, placements)  # type: ignore[arg-type]
    norm = clip_grad_norm_([*shards, head], 0.5, 3.0)
    for p, shard in zip(body.parameters(), shards, strict=True):
        p.grad = shard.grad.full_tensor()  # type: ignore[union-attr]
    check(found(norm, body, head), truth, head)


def test_dtensors_are_counted_over_their_own_mesh() -> None:
    run_ranks(4, dtensors)


def two_heads(rank: int, size: int) -> torch.Tensor:
    """Two groups of ranks: a head over all, and one of each half's own, which replicas share."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "class"))
    heads = [given("dense")[1], given("dense", mesh["class"], mesh["replica"])[1]]
    norm = clip_grad_norm_(heads, 0.5)
    truth = expected(full_gradients()[2:] * 2, 0.5)
    assert torch.allclose(norm, truth[0], rtol=1e-12)
    return norm


def test_heads_on_several_groups() -> None:
    norms = run_ranks(4, two_heads)
    assert all(torch.equal(norms[0], norm) for norm in norms)


def of_bad_gradients(rank: int, size: int, value: float) -> None:
    """inf or NaN of one rank is the norm of all."""
    body, head = given("sparse")
    if rank == 1:
        head.weight.grad._values()[0, 0] = value
    before = body.weight.grad.clone()
    with pytest.raises(RuntimeError, match=r"the norm of all gradients is (inf|nan): look for"):
        clip_grad_norm_([body, head], 0.5, error_if_nonfinite=True)
    assert torch.equal(body.weight.grad, before)  # nothing was changed
    assert not bool(clip_grad_norm_([body, head], 0.5).isfinite())


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_norm_that_is_not_finite(value: float) -> None:
    run_ranks(2, of_bad_gradients, value)


def large(rank: int, size: int) -> None:
    """Norms whose squares float32 does not hold."""
    head = ShardedSampledSoftmaxLoss(D, C, S, seed=0)
    for p in head.parameters():
        p.grad = torch.full_like(p, 1e18)
    norm = clip_grad_norm_(head, 1.0)
    assert float(norm) == pytest.approx(1e18 * (C * D + C) ** 0.5, rel=1e-5)


def test_large_gradients() -> None:
    run_ranks(3, large)


def copies(rank: int, size: int) -> None:
    """A copy of a head, and one that was materialised, are known too."""
    meta = ShardedSampledSoftmaxLoss(D, C, S, seed=0, device="meta")
    meta.to_empty(device="cpu").reset_parameters()
    for head in (copy.deepcopy(given("dense")[1]), meta):
        for p, value in zip(head.parameters(), full_gradients()[2:], strict=True):
            own = value[head.shard.begin : head.shard.end]
            p.grad = own.to(p.dtype, copy=True)
        norm = clip_grad_norm_(list(head.parameters()), 0.5)
        assert float(norm) == pytest.approx(float(expected(full_gradients()[2:], 0.5)[0]))


def test_copies_of_heads() -> None:
    run_ranks(3, copies)


def at_odds(rank: int, size: int, how: str) -> str:
    """The error of a rank when the last one clips otherwise."""
    body, head = given("dense")
    last = rank == size - 1
    x, target = torch.ones(2, D, dtype=torch.float64), torch.arange(2)
    try:
        if how == "norms":
            clip_grad_norm_([body, head], 1.0 if last else 0.5)
        if how == "shards":
            clip_grad_norm_([body, head.weight] if last else [body, head], 0.5)
        if how == "left out":
            clip_grad_norm_([body] if last else [body, head], 0.5)
            head(x, target)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("norms", "ValueError: .*max_norm must be the same on all ranks, got 0.5 .* 1.0 on rank 2"),
        ("shards", "ValueError: .*number of shards must be the same on all ranks, got 2 .* and 1"),
        ("left out", "RuntimeError: .*ranks are at different places.*clip_grad_norm_.*forward"),
    ],
)
def test_ranks_that_clip_otherwise(how: str, message: str) -> None:
    found = run_ranks(3, at_odds, how)
    assert len(set(found)) == 1 and re.match(message, found[0], re.DOTALL), found


def test_arguments() -> None:
    head = ShardedSampledSoftmaxLoss(D, C, S)
    assert float(clip_grad_norm_([], 1.0)) == 0.0
    assert float(clip_grad_norm_(head, 1.0)) == 0.0  # no gradients
    for norm_type in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"norm_type must be above 0, got"):
            clip_grad_norm_(head, 1.0, norm_type)
    for max_norm in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=r"max_norm must be at least 0, got"):
            clip_grad_norm_(head, max_norm)
    with pytest.raises(TypeError, match=r"parameters must be modules and tensors, got"):
        clip_grad_norm_([head, "head"], 1.0)  # type: ignore[list-item]
    with pytest.raises(TypeError, match="max_norm"):
        clip_grad_norm_(head, "1")  # type: ignore[arg-type]
    assert not distributed.is_initialized()
