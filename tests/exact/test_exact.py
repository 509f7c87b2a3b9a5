"""The exact softmax, streamed: value, gradients, top k and log probabilities over all classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from helpers.problem import make_problem
from helpers.truth import assert_close_to_truth
from sampled_softmax_cuda import exact
from sampled_softmax_cuda.losses import rows as losses_rows
from sampled_softmax_cuda.ops import exact as ops

TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 3e-2,
}
SHAPES = [
    (1, 1, 1),  # one of everything
    (7, 33, 129),  # odd
    (65, 40, 2500),  # more than one chunk of classes
]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks of classes in small tests."""
    monkeypatch.setattr(losses_rows, "CHUNK_ELEMENTS", 1 << 10)


def problem_and_logits(shape: tuple[int, int, int], dtype: torch.dtype) -> Any:
    problem = make_problem(*shape, 1, dtype=dtype, ignored=min(2, shape[0] - 1))
    double = problem.to(torch.float64)
    return problem, double, F.linear(double.input, double.weight, double.bias)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cross_entropy(
    backend: str, shape: tuple[int, int, int], reduction: str, dtype: torch.dtype
) -> None:
    problem, double, z = problem_and_logits(shape, dtype)
    ours = exact.exact_cross_entropy(
        problem.input,
        problem.weight,
        problem.target,
        bias=problem.bias,
        temperature=0.5,
        reduction=reduction,
    )
    expected = F.cross_entropy(z / 0.5, double.target, reduction=reduction)
    assert ours.dtype == dtype
    scale = float(z.detach().abs().max()) / 0.5
    assert_close_to_truth(ours, expected.to(dtype), expected, "loss", scale=scale)
    grads = torch.autograd.grad(ours.sum(), problem.leaves)
    expected_grads = torch.autograd.grad(expected.sum(), double.leaves)
    for name, a, b in zip(("input", "weight", "bias"), grads, expected_grads, strict=True):
        assert_close_to_truth(a, b.to(dtype), b, f"gradient of {name}", slack=32, scale=scale)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_row_counts(device: str, reduction: str) -> None:
    h, w = torch.randn(2, 3), torch.randn(5, 3)
    for rows in (0, 2):
        target = torch.full((rows,), -100)
        loss = exact.exact_cross_entropy(h[:rows], w, target, reduction=reduction)
        assert loss.item() == 0.0


def test_bad_numbers_stay_in_their_row(backend: str) -> None:
    problem, _, _ = problem_and_logits((65, 40, 2500), torch.float32)
    h = problem.input.detach().clone()
    arguments = {"bias": problem.bias.detach(), "reduction": "none"}
    expected = exact.exact_cross_entropy(h, problem.weight.detach(), problem.target, **arguments)
    h[7, 0], h[9, 1] = torch.nan, torch.inf
    loss = exact.exact_cross_entropy(h, problem.weight.detach(), problem.target, **arguments)
    good = torch.ones(65, dtype=torch.bool)
    good[7] = good[9] = False
    assert loss[~good].isnan().all()
    torch.testing.assert_close(loss[good], expected[good])


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits(backend: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    problem, double, z = problem_and_logits(shape, dtype)
    ours = exact.logits(problem.input, problem.weight, bias=problem.bias, temperature=2.0)
    assert ours.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert_close_to_truth(ours, (z / 2).to(ours.dtype), z / 2, "logits", slack=16)
    factors = torch.randn(ours.shape, dtype=ours.dtype)
    grads = torch.autograd.grad((ours * factors).sum(), problem.leaves)
    expected = torch.autograd.grad((z / 2 * factors).sum(), double.leaves)
    for name, a, b in zip(("input", "weight", "bias"), grads, expected, strict=True):
        assert_close_to_truth(a, b.to(dtype), b, f"gradient of {name}", slack=32)


@pytest.mark.parametrize("columns", [None, 1, 4])
def test_log_prob(backend: str, columns: int | None) -> None:
    problem, double, z = problem_and_logits((7, 33, 129), torch.float32)
    shape = (7,) if columns is None else (7, columns)
    ids = torch.randint(129, shape)
    ours = exact.log_prob(problem.input, problem.weight, ids, bias=problem.bias, temperature=0.7)
    expected = (z / 0.7).log_softmax(1).gather(1, ids.reshape(7, -1)).reshape(shape)
    torch.testing.assert_close(ours, expected.float(), rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad(ours.sum(), problem.leaves)
    for a, b in zip(grads, torch.autograd.grad(expected.sum(), double.leaves), strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [1, 5, 129])
def test_topk(backend: str, k: int) -> None:
    problem, _, z = problem_and_logits((7, 33, 129), torch.float32)
    best = exact.topk(problem.input, problem.weight, k, bias=problem.bias)
    expected = z.topk(k, dim=1)
    assert torch.equal(best.indices, expected.indices)
    torch.testing.assert_close(best.values, expected.values.float(), rtol=1e-5, atol=1e-5)
    assert not best.values.requires_grad


def test_topk_merges_chunks(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """k larger than a chunk of classes, and the winners spread over all of them."""
    monkeypatch.setattr(exact, "chunk_classes", lambda rows, classes: 10)
    values = torch.randperm(95).float()
    best = exact.topk(torch.ones(1, 1), values[:, None], 25)
    assert torch.equal(best.indices[0], values.argsort(descending=True)[:25])


@pytest.mark.parametrize("leading", [(), (3, 4), (0,), (2, 0)])
def test_leading_shapes(device: str, leading: tuple[int, ...]) -> None:
    h, w = torch.randn(*leading, 6), torch.randn(20, 6)
    target = torch.randint(20, leading)
    loss = exact.exact_cross_entropy(h, w, target, reduction="none")
    assert loss.shape == leading
    assert exact.logits(h, w).shape == (*leading, 20)
    assert exact.log_prob(h, w, target).shape == leading
    assert exact.log_prob(h, w, target[..., None].expand(*leading, 2)).shape == (*leading, 2)
    assert exact.topk(h, w, 3).indices.shape == (*leading, 3)
    torch.testing.assert_close(exact.log_prob(h, w, target), -loss)


def test_never_all_logits_at_once(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """2^33 classes that are one row in memory cannot be evaluated, but a chunk of them can; here
    the largest tensor made is watched instead."""
    monkeypatch.setattr(losses_rows, "CHUNK_ELEMENTS", 1 << 10)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple) else (result,):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.untyped_storage().nbytes() // 4)
            return result

    rows, classes = 64, 5000
    h, w = torch.randn(rows, 8), torch.randn(classes, 8)
    with Watch(), torch.no_grad():
        exact.exact_cross_entropy(h, w, torch.arange(rows))
        exact.topk(h, w, 3)
    assert largest <= max(rows * 1024, classes * 8) < rows * classes


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_of_rows_with_small_factors(
    device: str, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, with_bias: bool
) -> None:
    """In several chunks of classes; 16-bit types hold P and the factors all the same. An ignored
    row may be NaN."""
    monkeypatch.setattr(ops, "chunk_classes", lambda rows, classes: 17)
    h, weight, bias = torch.randn(9, 12), torch.randn(50, 12), torch.randn(50)
    target = torch.randint(50, (9,))
    target[3] = -100
    h[3] = torch.nan
    parameters = [t.to(dtype).requires_grad_() for t in (h, weight, bias)[: 2 + with_bias]]
    leaves = [p.detach().double().requires_grad_() for p in parameters]
    upstream = torch.rand(9, dtype=torch.float64) * 1e-3
    loss = exact.exact_cross_entropy(
        *parameters[:2], target, bias=parameters[2] if with_bias else None,
        temperature=0.7, reduction="none",
    )  # fmt: skip
    ours = torch.autograd.grad((loss.double() * upstream).sum(), parameters)
    counted = target != -100
    z = F.linear(leaves[0][counted], *leaves[1:]) / 0.7
    losses = F.cross_entropy(z, target[counted], reduction="none")
    theirs = torch.autograd.grad((losses * upstream[counted]).sum(), leaves)
    for mine, want in zip(ours, theirs, strict=True):
        assert mine.dtype == dtype
        assert not mine.isnan().any()
        assert (mine.double() - want).abs().max() <= TOLERANCE[dtype] * want.abs().max()


def test_log_prob_of_classes_that_are_switched_off(device: str) -> None:
    h, weight, bias = torch.randn(3, 4), torch.randn(9, 4), torch.zeros(9)
    bias[3] = -torch.inf
    ids = torch.tensor([[3, 1], [2, 3], [3, 3]])
    want = (h @ weight.T + bias).log_softmax(1).gather(1, ids)
    torch.testing.assert_close(exact.log_prob(h, weight, ids, bias=bias), want)
