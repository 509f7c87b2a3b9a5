"""Numbers that are hard: large logits, 16 bits, finite differences; generators of the user."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch._dynamo.testing import CompileCounterWithBackend

import sampled_softmax_cuda as ssc
from helpers.rank_threads import dense, run_ranks
from sampled_softmax_cuda.distributed import (
    ClassShard,
    ShardedSampledSoftmaxLoss,
    sharded_sampled_softmax_loss,
)

C, D, S, B = 50, 8, 30, 4
ALGORITHMS = ["fetch", "gather"]


def problem(size: int, dtype: torch.dtype, scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Input, weight and bias of a dtype, targets; of all ranks. Logits up to about 10 · scale."""
    g = torch.Generator().manual_seed(1)
    h = scale * torch.randn(size * B, D, generator=g)
    weight, bias = torch.randn(C, D, generator=g), torch.randn(C, generator=g)
    target = torch.randint(C, (size * B,), generator=g)
    return h.to(dtype), weight.to(dtype), bias.to(dtype), target


def against_one_process(
    rank: int, size: int, algorithm: str, dtype: torch.dtype, scale: float, autocast: bool
) -> tuple[float, Tensor]:
    """The largest error of a rank's loss and gradients, relative to the largest of them, against
    one process in float64; and the loss."""
    h, weight, bias, target = problem(size, dtype, scale)
    samples = ssc.LogUniformSampler(C).sample(
        target, S, replacement=False, generator=torch.Generator().manual_seed(2)
    )
    one = [x.double().requires_grad_() for x in (h, weight, bias)]
    expected = ssc.sampled_softmax_loss(one[0], one[1], target, samples, bias=one[2])
    expected.backward()
    shard, own = ClassShard(C), slice(rank * B, (rank + 1) * B)
    mine = shard.classes
    parts = [x.clone().requires_grad_() for x in (h[own], weight[mine], bias[mine])]
    counts = samples.target_log_expected_count
    assert counts is not None
    part = ssc.Samples(samples.ids, samples.log_expected_count, counts[own])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = sharded_sampled_softmax_loss(
            parts[0],
            parts[1],
            target[own],
            part,
            shard=shard,
            bias=parts[2],
            algorithm=algorithm,
            sparse_grad=True,
        )
    loss.backward()
    value = loss.detach().double()
    distributed.all_reduce(value)
    wanted = [expected.detach(), *(dense(x.grad, x) for x in one)]
    found = [
        value / size,
        dense(parts[0].grad, parts[0]) / size,
        dense(parts[1].grad, parts[1]),
        dense(parts[2].grad, parts[2]),
    ]
    wanted = [wanted[0], wanted[1][own], wanted[2][mine], wanted[3][mine]]
    worst = 0.0
    for x, y in zip(found, wanted, strict=True):
        assert bool(x.isfinite().all())
        if y.numel():
            worst = max(worst, float((x.double() - y).abs().max() / y.abs().max().clamp(min=1e-9)))
    return worst, loss.detach()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("dtype", "scale", "autocast", "bound"),
    [
        (torch.float32, 1.0, False, 1e-5),
        (torch.float32, 40.0, False, 1e-3),  # logits of ±400
        (torch.float32, 1e-6, False, 1e-5),
        (torch.bfloat16, 1.0, False, 0.03),
        (torch.float16, 1.0, False, 0.01),
        (torch.float32, 1.0, True, 0.05),
    ],
    ids=["float32", "large", "small", "bfloat16", "float16", "autocast"],
)
def test_numbers(
    algorithm: str, dtype: torch.dtype, scale: float, autocast: bool, bound: float
) -> None:
    h, weight, bias, _ = problem(3, dtype, scale)
    if scale == 40.0:
        assert float((h @ weight.T + bias).abs().max()) > 400
    for size in (1, 3):
        found = run_ranks(size, against_one_process, algorithm, dtype, scale, autocast)
        assert max(error for error, _ in found) < bound, found


def test_compiled_code_breaks_at_a_head() -> None:
    """The code around it is compiled, the head is not, whose exchanges would break graphs often."""
    body, head = torch.nn.Linear(D, D), ShardedSampledSoftmaxLoss(D, C, S, seed=1)
    h, _, _, target = problem(1, torch.float32, 1.0)

    def loss(h: Tensor) -> Tensor:
        return head(body(h).relu(), target) * 2.0  # type: ignore[no-any-return]

    expected = loss(h)
    gradients = torch.autograd.grad(expected, [*body.parameters(), *head.parameters()])
    head._step = 0  # the same negatives
    counter = CompileCounterWithBackend("aot_eager")
    found = torch.compile(loss, backend=counter)(h)
    assert torch.equal(found, expected) and counter.frame_count == 2
    found.backward()
    for p, gradient in zip([*body.parameters(), *head.parameters()], gradients, strict=True):
        assert p.grad is not None and torch.equal(p.grad, gradient)


def test_autocast_gives_the_dtype_of_one_process() -> None:
    h, weight, bias, target = problem(1, torch.float32, 1.0)
    samples = ssc.LogUniformSampler(C).sample(target, S)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = ssc.sampled_softmax_loss(h, weight, target, samples, bias=bias)
    for algorithm in ALGORITHMS:
        found = run_ranks(2, against_one_process, algorithm, torch.float32, 1.0, True)
        assert {loss.dtype for _, loss in found} == {expected.dtype}


def finite_differences(rank: int, size: int, algorithm: str, draw: str) -> float:
    """The relative error of the derivative along one direction of all parameters and inputs."""
    head = ShardedSampledSoftmaxLoss(
        D,
        C,
        S,
        1.0 / torch.arange(1, C + 1),
        draw=draw,
        algorithm=algorithm,
        seed=3,
        temperature=0.7,
        z_loss=0.01,
        dtype=torch.float64,
    )
    h, _, _, target = problem(size, torch.float64, 1.0)
    own = slice(rank * B, (rank + 1) * B)
    x, t = h[own].requires_grad_(), target[own]
    head(x, t).backward()
    g = torch.Generator().manual_seed(rank)
    slope = torch.zeros((), dtype=torch.float64)
    moves = []
    # A shard's gradient is that of the mean over ranks already.
    for y, share in ((x, 1 / size), (head.weight, 1.0), (head.bias, 1.0)):
        assert y is not None
        moves.append((y, torch.randn(y.shape, generator=g, dtype=torch.float64)))
        slope += (dense(y.grad, y) * moves[-1][1]).sum() * share
    distributed.all_reduce(slope)
    values = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for y, move in moves:
                y += step * move
        head._step = 0  # the same negatives
        value = head(x, t).detach().clone()
        distributed.all_reduce(value)
        values.append(value / size)
    return float(((values[0] - values[1]) / 2e-6 - slope) / slope)


@pytest.mark.parametrize("draw", ["global", "composed", "stratified"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_finite_differences(algorithm: str, draw: str) -> None:
    assert max(abs(e) for e in run_ranks(3, finite_differences, algorithm, draw)) < 1e-6


def given_generator(rank: int, size: int, draw: str) -> list[Any]:
    """Losses with the user's generator; then errors of generators that don't fit."""
    head = ShardedSampledSoftmaxLoss(D, C, S, torch.rand(C, generator=seeded(0)), draw=draw, seed=1)
    h, _, _, target = problem(3, torch.float32, 1.0)
    own = slice(rank, None, size)
    found: list[Any] = []
    generator = seeded(5)
    for _ in range(3):
        value = head(h[own], target[own], generator=generator).detach().clone()
        distributed.all_reduce(value)
        found.append(value / size)
    again = head(h[own], target[own], generator=seeded(5)).detach().clone()
    distributed.all_reduce(again)
    assert torch.equal(again / size, found[0]) and not torch.equal(found[0], found[1])
    head.prefetch(target[own], generator=seeded(5))
    ahead = head(h[own], target[own]).detach().clone()
    distributed.all_reduce(ahead)
    assert torch.equal(ahead / size, found[0])
    for bad, match in ((seeded(rank), "state of the generator must be the same"), (5, "got int")):
        if size > 1 or bad == 5:
            with pytest.raises((ValueError, TypeError), match=match):
                head(h[own], target[own], generator=bad)
    return found


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("draw", ["global", "composed", "stratified"])
def test_generator_of_the_user(draw: str) -> None:
    one = run_ranks(1, given_generator, draw)[0]
    three = run_ranks(3, given_generator, draw)
    assert all(torch.equal(a, b) for a, b in zip(three[0], three[2], strict=True))
    if draw == "global":  # the same negatives for any number of ranks, and those of one process
        assert torch.allclose(torch.stack(three[0]), torch.stack(one))
        h, _, _, target = problem(3, torch.float32, 1.0)
        head = ssc.SampledSoftmaxLoss(D, C, S, torch.rand(C, generator=seeded(0)))
        alone = ShardedSampledSoftmaxLoss(D, C, S, seed=1)
        head.load_state_dict(alone.full_state_dict(), strict=False)
        assert torch.allclose(head(h, target, generator=seeded(5)), one[0])
