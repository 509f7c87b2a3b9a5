"""Gradients of the sampled loss: against float64, F.cross_entropy, and autograd's own rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import sampled_softmax_cuda as ssc
from helpers.backends import unavailable
from helpers.problem import SHAPES, make_problem
from helpers.samplers import parts
from helpers.truth import check_grads, truth

NAMES = ("input", "weight", "bias")


def dense(grads: Any) -> list[torch.Tensor]:
    return [grad.to_dense() for grad in grads]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)
@pytest.mark.parametrize("sparse_grad", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(backend: str, shape: str, sparse_grad: bool, dtype: torch.dtype) -> None:
    check_grads(make_problem(*SHAPES[shape], dtype=dtype), sparse_grad=sparse_grad)


@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "sum", "temperature": 0.5},
        {"reduction": "none", "correction": "negatives"},
        {"correction": "none", "remove_accidental_hits": False},
        {"ignore_index": 3, "temperature": 3.0, "remove_accidental_hits": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("sparse_grad", [False, True], ids=["dense", "sparse"])
def test_gradients_with_options(backend: str, sparse_grad: bool, options: dict[str, Any]) -> None:
    ignore_index = options.get("ignore_index", -100)
    problem = make_problem(33, 40, 60, 50, ignored=5, ignore_index=ignore_index)
    check_grads(problem, sparse_grad=sparse_grad, **options)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_upstream_gradients_are_used(device: str, reduction: str) -> None:
    problem = make_problem(12, 9, 30, 20, ignored=2)
    factors = torch.linspace(-2, 3, 12)
    check_grads(
        problem,
        lambda loss: (loss * (factors if reduction == "none" else 0.37)).sum(),
        reduction=reduction,
    )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_gradient_of_sample_weight(device: str, reduction: str) -> None:
    problem = make_problem(12, 9, 30, 20, ignored=2)
    grads = []
    for loss in (problem.loss, lambda **options: truth(problem, **options)[0]):
        weights = torch.linspace(0.1, 2, 12).requires_grad_()
        value = loss(sample_weight=weights, reduction=reduction).sum()
        grads.append(torch.autograd.grad(value, [*problem.leaves, weights]))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


PARITY = {
    torch.float64: 1e-10,
    torch.float32: 2e-5,
    torch.bfloat16: 3e-2,
    torch.float16: 5e-3,
}


@pytest.mark.parametrize("dtype", PARITY, ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (7, 33, 129), (252, 123, 507), (3, 257, 4097)], ids=str
)
def test_every_class_once_is_cross_entropy(
    backend: str, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    num_rows, width, num_classes = shape
    problem = make_problem(num_rows, width, num_classes, 1, dtype=dtype, counts=False)
    all_classes = ssc.Samples(torch.randperm(num_classes))
    loss = ssc.sampled_softmax_loss(
        problem.input, problem.weight, problem.target, all_classes, bias=problem.bias
    )
    grads = torch.autograd.grad(loss, problem.leaves)
    double = problem.to(torch.float64)
    expected = F.cross_entropy(F.linear(double.input, double.weight, double.bias), double.target)
    expected_grads = torch.autograd.grad(expected, double.leaves)

    def relative(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a.double() - b).norm() / b.norm().clamp_min(1e-30)) if b.any() else 0.0

    assert relative(loss.detach(), expected.detach()) <= PARITY[dtype]
    for name, a, b in zip(NAMES, grads, expected_grads, strict=True):
        assert relative(a, b) <= PARITY[dtype], name


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_gradcheck(device: str, reduction: str, with_bias: bool) -> None:
    problem = make_problem(4, 5, 9, 7, dtype=torch.float64, bias=with_bias, ignored=1)

    def loss(h: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        value: torch.Tensor = ssc.sampled_softmax_loss(
            h, w, problem.target, problem.samples, bias=b, reduction=reduction, temperature=0.7
        )
        return value

    assert torch.autograd.gradcheck(loss, problem.leaves)


def test_reference_can_be_differentiated_twice() -> None:
    problem = make_problem(3, 4, 6, 5, dtype=torch.float64)

    def loss(h: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return ssc.reference.sampled_softmax_loss(  # type: ignore[return-value]
            h, w, problem.target, problem.samples, bias=b
        )

    assert torch.autograd.gradgradcheck(loss, problem.leaves)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_double_backward_is_refused_with_a_way_out(compiled: str, reduction: str) -> None:
    problem = make_problem(3, 4, 6, 5)
    loss = problem.loss(reduction=reduction).sum()
    with pytest.raises(RuntimeError, match=r"create_graph=True.*reference"):
        torch.autograd.grad(loss, problem.leaves, create_graph=True)


@pytest.mark.parametrize("sparse_grad", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_second_backward_gives_the_same(device: str, reduction: str, sparse_grad: bool) -> None:
    problem = make_problem(20, 16, 50, 30)
    loss = 0.3 * problem.loss(reduction=reduction, sparse_grad=sparse_grad).sum()
    first = dense(torch.autograd.grad(loss, problem.leaves, retain_graph=True))
    second = dense(torch.autograd.grad(loss, problem.leaves, retain_graph=True))
    third = dense(torch.autograd.grad(loss, problem.leaves))
    for a, b, c in zip(first, second, third, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize("sparse_grad", [False, True], ids=["dense", "sparse"])
def test_two_backwards_accumulate(device: str, sparse_grad: bool) -> None:
    one, two = make_problem(20, 16, 50, 30, seed=1), make_problem(20, 16, 50, 30, seed=2)
    expected = [
        torch.autograd.grad(
            ssc.sampled_softmax_loss(p.input, one.weight, p.target, p.samples, bias=one.bias),
            [one.weight, one.bias],
        )
        for p in (one, two)
    ]
    for p in (one, two):
        ssc.sampled_softmax_loss(
            p.input, one.weight, p.target, p.samples, bias=one.bias, sparse_grad=sparse_grad
        ).backward()
    for parameter, a, b in zip((one.weight, one.bias), *expected, strict=True):
        torch.testing.assert_close(parameter.grad.to_dense(), a + b)


def test_only_wanted_gradients(device: str) -> None:
    problem = make_problem(6, 5, 8, 4)
    expected = torch.autograd.grad(problem.loss(), problem.leaves)
    for index, leaf in enumerate(problem.leaves):
        for other in problem.leaves:
            other.requires_grad_(other is leaf)
            other.grad = None
        problem.loss().backward()
        torch.testing.assert_close(leaf.grad, expected[index])
        assert all(other.grad is None for other in problem.leaves if other is not leaf)


def test_no_gradient_wanted(device: str) -> None:
    problem = make_problem(6, 5, 8, 4)
    expected = problem.loss()
    with torch.no_grad():
        loss = problem.loss()
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected.detach())


def test_gradient_of_a_weight_that_is_not_a_leaf(device: str) -> None:
    """Weight tying: the gradient goes on through what the weight was made from."""
    problem = make_problem(6, 5, 8, 4)
    base = problem.weight.detach().clone().requires_grad_()
    ssc.sampled_softmax_loss(problem.input, 2 * base, problem.target, problem.samples).backward()
    other = (2 * base).detach().requires_grad_()
    ssc.sampled_softmax_loss(problem.input, other, problem.target, problem.samples).backward()
    torch.testing.assert_close(base.grad, 2 * other.grad)


# --- sparse gradients --------------------------------------------------------------------------


def nonzero_rows(grad: torch.Tensor) -> torch.Tensor:
    """A sparse gradient [C, D] or [C], coalesced and without rows of zeros."""
    grad = grad.coalesce()
    kept = grad.values().reshape(grad._nnz(), -1).any(dim=1)
    indices, values = grad.indices()[:, kept], grad.values()[kept]
    return torch.sparse_coo_tensor(
        indices, values, grad.shape, is_coalesced=True, check_invariants=True
    )


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_sparse_gradients_are_rows_that_were_touched(backend: str, reduction: str) -> None:
    problem = make_problem(20, 16, 200, 30, ignored=3)
    problem.loss(reduction=reduction, sparse_grad=True).sum().backward()
    kept = problem.target[problem.target != -100]
    touched = torch.unique(torch.cat((problem.samples.ids, kept)))
    for grad in (problem.weight.grad, problem.bias.grad):
        assert grad.is_sparse
        if backend in ("simt", "ptx", "cuda"):
            # How many rows are distinct would have to be waited for: zeros fill up to S + B.
            assert not grad.is_coalesced()
            assert grad._nnz() == 30 + 20
            grad = nonzero_rows(grad)
        assert grad.is_coalesced()
        assert torch.equal(grad.indices()[0], touched)
        torch.sparse_coo_tensor(grad.indices(), grad.values(), grad.shape, check_invariants=True)
        # The flag is no empty promise.
        indices = grad.indices()[0]
        assert bool((indices[1:] > indices[:-1]).all())


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SparseAdam(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.Adagrad(p, lr=0.1),
    ],
    ids=["SparseAdam", "SGD", "Adagrad"],
)
def test_optimizers_take_sparse_gradients(device: str, optimizer: Any) -> None:
    """The loss falls; rows that were not touched stay as they were, bit for bit."""
    problem = make_problem(16, 8, 300, 20)
    before = problem.weight.detach().clone()
    steps = optimizer([problem.weight, problem.bias])
    losses = []
    for _ in range(5):
        steps.zero_grad()
        loss = problem.loss(sparse_grad=True)
        loss.backward()
        steps.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    touched = torch.unique(torch.cat((problem.samples.ids, problem.target)))
    untouched = torch.ones(300, dtype=torch.bool)
    untouched[touched] = False
    assert torch.equal(problem.weight.detach()[untouched], before[untouched])


@pytest.mark.parametrize("sparse_grad", [False, True], ids=["dense", "sparse"])
def test_gradients_are_handed_over_without_a_copy(native: None, sparse_grad: bool) -> None:
    problem = make_problem(16, 8, 300, 20)
    loss = problem.loss(sparse_grad=sparse_grad)
    stash = {grad.data_ptr() for grad in loss.grad_fn.grads[:3]}
    loss.backward()
    grads = [problem.input.grad, problem.weight.grad, problem.bias.grad]
    values = [grad.values() if grad.is_sparse else grad for grad in grads]
    assert {value.data_ptr() for value in values} == stash


def test_pairs_serve_where_tiles_would_take_too_much_memory(
    native: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles keep E of 32 rows at least: 59 MB of so many samples, where 56 MiB are allowed."""
    if unavailable("amx_bf16"):
        pytest.skip("this processor has no AMX")
    classes = 930_000
    weight, input = torch.randn(classes, 4).bfloat16(), torch.randn(40, 4).bfloat16()
    target = torch.randint(classes, (40,))

    def grads(isa: str, count: int) -> list[torch.Tensor]:
        monkeypatch.setenv("SSC_CPU_ISA", isa)
        h, w = (x.clone().requires_grad_() for x in (input, weight))
        loss = ssc.sampled_softmax_loss(h, w, target, ssc.Samples(torch.arange(count)))
        return list(torch.autograd.grad(loss, (h, w)))

    for count, same in ((classes, True), (1000, False)):
        tiles, pairs = grads("amx_bf16", count), grads("avx512_bf16", count)
        assert torch.equal(tiles[1], pairs[1]) == same, count


def test_a_sparse_step_costs_nothing_that_grows_with_the_classes(backend: str) -> None:
    """2^33 classes: one array [C] of single bytes would be 8 GiB, and is not allocated."""
    num_classes = 2**33
    weight = torch.randn(1, 4).expand(num_classes, 4).requires_grad_()
    h = torch.randn(2, 4, requires_grad=True)
    ids = torch.tensor([5, 2**31 + 5, 2**32 + 5, num_classes - 1])
    target = torch.tensor([2**32 + 5, 7])
    loss = ssc.sampled_softmax_loss(h, weight, target, ssc.Samples(ids), sparse_grad=True)
    grad = nonzero_rows(torch.autograd.grad(loss, [weight])[0])
    assert torch.equal(grad.indices()[0], torch.tensor([5, 7, 2**31 + 5, 2**32 + 5, 2**33 - 1]))
    # Equal logits: each of four entries has probability 1/4 in the first row, 1/5 in the second.
    expected = (h[0] / 4 + h[1] / 5) / 2
    torch.testing.assert_close(grad.values()[-1], expected.detach())


# --- the operators themselves ------------------------------------------------------------------


def op_arguments(dtype: torch.dtype, requires_grad: bool) -> tuple[Any, ...]:
    p = make_problem(6, 5, 12, 8, dtype=dtype, ignored=1)
    leaves = [leaf.detach().requires_grad_(requires_grad) for leaf in p.leaves]
    return (*leaves, p.target, *parts(p.samples), 0.5, True, -100)


OPCHECKS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "loss_rows": lambda: op_arguments(torch.float32, True),
    "loss_and_grads": lambda: (*op_arguments(torch.float32, False), torch.rand(6), False, False),
    "loss_and_grads sparse": lambda: (*op_arguments(torch.bfloat16, False), None, True, True),
    "loss_and_padded_grads": lambda: (*op_arguments(torch.float32, False), torch.rand(6), False),
    "exact_loss_rows": lambda: (*op_arguments(torch.float64, True)[:4], 0.5, -100),
    "logits": lambda: (*op_arguments(torch.bfloat16, True)[:3], 2, 9, 0.5),
}


def part_arguments() -> dict[str, tuple[Any, ...]]:
    """Arguments of the operators that the CPU has for reduced losses of any options."""
    p = make_problem(6, 5, 12, 8)
    h, w, b = (leaf.detach() for leaf in p.leaves)
    hits = target = p.target[:, None]
    row, counted = torch.rand(6), torch.ones(6, dtype=torch.bool)
    samples = (*parts(p.samples)[:2], 0.5, 0.0, True, True)
    classes = torch.arange(12)[None]
    grads = (torch.rand(6, 5), torch.rand(12, 5), torch.rand(12), classes)
    return {
        "loss_and_wide_grads": (*op_arguments(torch.float16, False), None, True),
        "target_products": (h, w, target),
        "negatives_loss_and_grads": (h, w, b, row, hits, counted, *samples, row, target),
        "add_target_grads": (*grads, h, w, target, row[:, None], row[:, None]),
        "unit_rows": (w, classes[0]),
        "unit_rows_grad": (torch.rand(6, 5), h, row),
    }


@pytest.mark.parametrize("name", part_arguments())
def test_opcheck_of_parts(native: None, name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.sampled_softmax, name), part_arguments()[name])


@pytest.mark.parametrize("case", OPCHECKS)
def test_opcheck(compiled: str, case: str) -> None:
    operator = getattr(torch.ops.sampled_softmax, case.split()[0])
    torch.library.opcheck(operator, OPCHECKS[case]())


def test_gradients_of_the_operators(compiled: str) -> None:
    ops = torch.ops.sampled_softmax
    h, w, b, *rest = op_arguments(torch.float64, True)
    target = rest[0]
    assert torch.autograd.gradcheck(lambda *x: ops.loss_rows(*x, *rest)[0], (h, w, b))
    assert torch.autograd.gradcheck(
        lambda *x: ops.exact_loss_rows(*x, target, 0.5, -100)[0], (h, w, b)
    )
    assert torch.autograd.gradcheck(lambda *x: ops.logits(*x, 2, 9, 0.5), (h, w, b))
