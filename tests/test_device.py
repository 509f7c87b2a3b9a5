"""The public functions with tensors of a device, against float64 on the CPU.

`cuda` needs a GPU; `cpu` shows on every machine that the tests are right. The kernels of a GPU are
tested in depth on csrc/simt: here is what only the device itself can show.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from sampling import KINDS, key, make_sampler

import sampled_softmax_cuda as ssc
from sampled_softmax_cuda import _load, exact
from sampled_softmax_cuda.testing import (
    SHAPES,
    Problem,
    assert_close_to_truth,
    make_problem,
    truth,
)

CASES = [(1, 1), (2, 500), (3, 2990)]  # seed, number of samples
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no GPU")
        if not _load.cuda_loaded():
            pytest.skip(_load.cuda_reason())
    elif not _load.library_loaded():
        pytest.skip(_load.native_reason())
    return str(request.param)


def on(device: str, p: Problem) -> Problem:
    """The same problem there, with leaves of its own."""
    leaves = [
        None if t is None else t.detach().to(device, copy=True).requires_grad_()
        for t in (p.input, p.weight, p.bias)
    ]
    samples = ssc.Samples(*(None if t is None else t.to(device) for t in p.samples))
    return replace(
        p,
        input=leaves[0],
        weight=leaves[1],
        bias=leaves[2],
        target=p.target.to(device),
        samples=samples,
    )


def check(device: str, p: Problem, **options: Any) -> None:
    """Value, details and gradients there, against float64."""
    there = on(device, p)
    loss, details = there.loss(return_details=True, **options)
    grads = torch.autograd.grad(loss.sum(), there.leaves)
    same, same_details = p.reference(return_details=True, **options)
    same_grads = torch.autograd.grad(same.sum(), p.leaves)
    double = p.to(torch.float64)
    options.pop("sparse_grad", None)
    want, want_details = truth(double, **options)
    want_grads = torch.autograd.grad(want.sum(), double.leaves)
    assert loss.device.type == device
    assert_close_to_truth(loss.cpu(), same, want, "loss")
    for name in ("lse", "target_logit"):
        ours, reference = getattr(details, name).cpu(), getattr(same_details, name)
        assert_close_to_truth(ours, reference, want_details[name], name, slack=16)
    scale = 1 / options.get("temperature", 1.0) / p.target.numel()
    for ours, reference, expected in zip(grads, same_grads, want_grads, strict=True):
        assert ours.device.type == device
        assert_close_to_truth(ours.cpu(), reference, expected, "gradient", slack=16, scale=scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sparse_grad", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(device: str, shape: str, sparse_grad: bool, dtype: torch.dtype) -> None:
    check(device, make_problem(*SHAPES[shape], dtype=dtype), sparse_grad=sparse_grad)


@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "sum", "temperature": 0.5},
        {"reduction": "none", "correction": "negatives"},
        {"correction": "none", "remove_accidental_hits": False},
        {"ignore_index": 3, "temperature": 3.0},
    ],
    ids=str,
)
def test_options(device: str, options: dict[str, Any]) -> None:
    ignore_index = options.get("ignore_index", -100)
    check(device, make_problem(70, 40, 200, 90, ignored=5, ignore_index=ignore_index), **options)


def test_several_chunks_of_rows(device: str) -> None:
    """More logits than the workspace holds at a time."""
    check(device, make_problem(2000, 8, 2000, 9000), sparse_grad=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("replacement", [True, False])
def test_ids_are_those_of_the_cpu(device: str, kind: str, replacement: bool) -> None:
    sampler = make_sampler(kind, 3001)
    want = [sampler.draw(key(seed, 9), n, replacement=replacement) for seed, n in CASES]
    sampler = sampler.to(device)
    for (seed, n), (ids, num_draws) in zip(CASES, want, strict=True):
        mine, my_draws = sampler.draw(key(seed, 9).to(device), n, replacement=replacement)
        assert mine.device.type == device
        assert torch.equal(mine.cpu(), ids)
        assert torch.equal(my_draws.cpu(), num_draws)


def test_the_same_bits_twice(device: str) -> None:
    p = on(device, make_problem(300, 64, 500, 700, dtype=torch.float32))
    first, second = (torch.autograd.grad(p.loss(sparse_grad=True), p.leaves) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.to_dense(), b.to_dense())


def test_padding_may_hold_anything(device: str) -> None:
    p = on(device, make_problem(20, 16, 50, 30, ignored=4))
    want = torch.autograd.grad(p.loss(), p.leaves)
    with torch.no_grad():
        p.input[:4] = torch.nan
    for grad, clean in zip(torch.autograd.grad(p.loss(), p.leaves), want, strict=True):
        assert torch.equal(grad, clean)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_evaluation(device: str, dtype: torch.dtype) -> None:
    p = make_problem(33, 24, 700, 1, dtype=dtype)
    there = on(device, p)
    z = torch.nn.functional.linear(p.input.double(), p.weight.double(), p.bias.double())
    want = torch.nn.functional.cross_entropy(z, p.target)
    same = torch.nn.functional.cross_entropy(z.to(dtype), p.target)
    loss = exact.exact_cross_entropy(there.input, there.weight, there.target, bias=there.bias)
    assert_close_to_truth(loss.cpu(), same, want, "exact loss", slack=16)
    for ours, expected in zip(
        torch.autograd.grad(loss, there.leaves), torch.autograd.grad(want, p.leaves), strict=True
    ):
        tolerance = {torch.float64: 1e-10, torch.float32: 1e-5}.get(dtype, 3e-2)
        error = (ours.cpu().double() - expected.double()).abs().max()
        assert error <= tolerance * expected.double().abs().max()
    best = exact.topk(there.input, there.weight, 7, bias=there.bias)
    largest = z.topk(7, dim=1).values
    assert_close_to_truth(best.values.cpu(), largest.float(), largest, "top k", slack=64)


def test_a_module_learns(device: str) -> None:
    torch.manual_seed(0)
    head = ssc.SampledSoftmaxLoss(16, 500, 64, sparse_grad=True, device=device)
    h = torch.randn(40, 16, device=device)
    target = torch.randint(500, (40,), device=device)
    optimizer = torch.optim.SGD(head.parameters(), lr=5.0)
    head.eval()
    before = head(h, target).item()
    head.train()
    for _ in range(60):
        optimizer.zero_grad()
        head(h, target).backward()
        optimizer.step()
    head.eval()
    assert head(h, target).item() < 0.5 * before


def test_a_graph_draws_fresh_negatives_at_each_replay(device: str) -> None:
    if device == "cpu":
        pytest.skip("CUDA graphs are for GPUs")
    p = on(device, make_problem(64, 32, 5000, 100))
    sampler = ssc.LogUniformSampler(5000)

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        samples = sampler.sample(p.target, 100, replacement=False)
        loss = ssc.sampled_softmax_loss(p.input, p.weight, p.target, samples, sparse_grad=True)
        return samples.ids, torch.autograd.grad(loss, p.input)[0]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ids, grad = step()
    seen = set()
    for _ in range(5):
        graph.replay()
        seen.add(tuple(ids.tolist()))
        assert torch.isfinite(grad).all()
    assert len(seen) == 5
