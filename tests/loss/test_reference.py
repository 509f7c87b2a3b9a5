"""The reference: the same surface as the compiled path, and plain autograd underneath."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.nn import functional as F

import sampled_softmax_cuda as ssc
from helpers.problem import make_problem
from sampled_softmax_cuda.losses.gather import gather_rows
from sampled_softmax_cuda.losses.problem import make_problem as make_problem_of
from sampled_softmax_cuda.reference.exact import exact_loss_rows
from sampled_softmax_cuda.reference.loss import loss_rows


def test_same_arguments() -> None:
    """The function and the problem that it makes, which the reference takes, agree in every name
    and every default."""
    ours = inspect.signature(ssc.sampled_softmax_loss).parameters
    problem = inspect.signature(make_problem_of).parameters
    assert list(problem)[1:] == list(ours), "the function passes them on by position"
    defaults = {name: argument.default for name, argument in problem.items() if name != "fn"}
    assert defaults == {name: argument.default for name, argument in ours.items()}


def test_agrees_with_the_compiled_path(native: None) -> None:
    for options in ({}, {"reduction": "none", "sparse_grad": True, "temperature": 0.3}):
        problem = make_problem(30, 20, 100, 60, ignored=2)
        ours, details = problem.loss(return_details=True, **options)
        theirs, same = problem.reference(return_details=True, **options)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        for a, b in zip(details, same, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_all_classes_give_cross_entropy() -> None:
    problem = make_problem(9, 6, 40, 1, dtype=torch.float64, counts=False)
    samples = ssc.Samples(torch.arange(40))
    loss = ssc.reference.sampled_softmax_loss(
        problem.input, problem.weight, problem.target, samples, bias=problem.bias
    )
    z = F.linear(problem.input, problem.weight, problem.bias)
    torch.testing.assert_close(loss, F.cross_entropy(z, problem.target))


def test_targets_out_of_range_give_nan_in_their_row() -> None:
    """CUDA tensors get NaN, since looking at their values would wait for the device."""
    problem = make_problem(4, 6, 10, 5)
    target = problem.target.clone()
    target[1], target[2] = 10, -7
    count, target_count = (
        problem.samples.log_expected_count,
        problem.samples.target_log_expected_count,
    )
    rest = (problem.samples.ids, count, target_count, 1.0, True, -100)
    loss = loss_rows(problem.input, problem.weight, problem.bias, target, *rest)[0]
    assert loss.isnan().tolist() == [False, True, True, False]
    loss, _ = exact_loss_rows(problem.input, problem.weight, problem.bias, target, 1.0, -100)
    assert loss.isnan().tolist() == [False, True, True, False]


@pytest.mark.parametrize("sparse_grad", [False, True], ids=["dense", "sparse"])
def test_gather_rows_adds_in_float32(sparse_grad: bool) -> None:
    """1000 gradients of 2^-9 next to 1: bfloat16 sums would lose them all."""
    table = torch.zeros(4, 2, dtype=torch.bfloat16, requires_grad=True)
    ids = torch.tensor([1] + [1] * 1000 + [3])
    rows = gather_rows(table, ids, torch.float32, sparse_grad)
    assert rows.dtype == torch.float32
    upstream = torch.full((1002, 2), 2.0**-9)
    upstream[0] = 1
    rows.backward(upstream)
    grad = table.grad.to_dense()
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(
        grad[1, 0].float(), torch.tensor(1 + 1000 * 2.0**-9), rtol=4e-3, atol=0
    )
    assert torch.equal(grad[0], torch.zeros(2, dtype=torch.bfloat16))


def test_loss_is_convex_in_the_input() -> None:
    """By its Hessian, which the reference can give."""
    problem = make_problem(3, 4, 6, 5, dtype=torch.float64)
    h = problem.input.detach()

    def loss(h: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = ssc.reference.sampled_softmax_loss(
            h, problem.weight.detach(), problem.target, problem.samples
        )
        return value

    hessian = torch.autograd.functional.hessian(loss, h).reshape(12, 12)
    assert float(torch.linalg.eigvalsh(hessian).min()) > -1e-12
