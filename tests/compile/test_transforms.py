"""torch.func and forward-mode AD give the derivatives of the float64 truth, for every loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, func
from torch.nn import functional as F

import sampled_softmax_cuda as ssc
from helpers.problem import Problem, make_option_problem
from helpers.truth import option_truth
from sampled_softmax_cuda import exact, functional
from sampled_softmax_cuda.reference import exact as reference_exact

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"num_targets": None},
    "reweighted": {"num_targets": None, "objective": ssc.Softmax(reweighted=True)},
    "several targets": {"num_targets": 3},
    "nce": {"num_targets": 2, "objective": "nce", "num_excluded": 2},
    "gbce": {"num_targets": None, "objective": "gbce"},
    "softcap": {"num_targets": 1, "softcap": 2.0},
    "arcface": {"num_targets": None, "cosine": True, "objective": ssc.Softmax(angular_margin=0.3)},
    "label smoothing": {"num_targets": None, "objective": ssc.Softmax(label_smoothing=0.1)},
    "per row": {"num_targets": None, "per_row": True},
    "nce per row": {"num_targets": 2, "per_row": True, "objective": "nce", "num_excluded": 2},
}

Leaves = tuple[Tensor, ...]


@pytest.fixture(params=OPTIONS)
def problem(request: pytest.FixtureRequest) -> Problem:
    return make_option_problem(3, 2, 6, 5, **OPTIONS[request.param])


def loss_of(p: Problem, **more: Any) -> Callable[..., Tensor]:
    """The loss as a function of input, weight and bias."""

    def loss(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        value: Tensor = ssc.sampled_softmax_loss(
            h, w, p.target, p.samples, bias=b, **p.options, **more
        )
        return value

    return loss


def truth_of(p: Problem) -> Callable[..., Tensor]:
    def rows(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        q = Problem(h, w, b, p.target, p.samples, p.options)
        return option_truth(q)[0]

    return rows


def values(p: Problem) -> Leaves:
    """The leaves as data: torch.func asks for no requires_grad."""
    return tuple(leaf.detach() for leaf in p.leaves)


def directions(leaves: Leaves) -> Leaves:
    return tuple(torch.randn_like(leaf) for leaf in leaves)


def close(ours: Any, truth: Any) -> None:
    torch.testing.assert_close(tuple(ours), tuple(truth), rtol=1e-7, atol=1e-9)


def test_reverse_mode(device: str, problem: Problem) -> None:
    leaves, each = values(problem), (0, 1, 2)
    truth = torch.autograd.functional.jacobian(truth_of(problem), leaves)
    close(func.jacrev(loss_of(problem, reduction="none"), each)(*leaves), truth)
    total = loss_of(problem, reduction="sum")
    gradient = [jacobian.sum(0) for jacobian in truth]
    close(func.grad(total, each)(*leaves), gradient)
    grads, value = func.grad_and_value(total, each)(*leaves)
    close((*grads, value), (*gradient, truth_of(problem)(*leaves).sum()))
    value, back = func.vjp(total, *leaves)
    close(back(torch.tensor(2.0, dtype=value.dtype)), [2 * g for g in gradient])


def test_forward_mode(device: str, problem: Problem) -> None:
    leaves = values(problem)
    tangents = directions(leaves)
    truth = torch.autograd.functional.jvp(truth_of(problem), leaves, tangents)
    rows = loss_of(problem, reduction="none")
    close(func.jvp(rows, leaves, tangents), truth)
    close(func.jacfwd(rows, (0, 1, 2))(*leaves), func.jacrev(rows, (0, 1, 2))(*leaves))
    with forward_ad.dual_level():
        duals = map(forward_ad.make_dual, leaves, tangents)
        close(forward_ad.unpack_dual(rows(*duals)), truth)
        total = loss_of(problem, reduction="sum")(*map(forward_ad.make_dual, leaves, tangents))
        close([forward_ad.unpack_dual(total).tangent], [truth[1].sum()])
        assert forward_ad.unpack_dual(rows(*leaves)).tangent is None


@pytest.mark.parametrize("place", range(3))
def test_one_tangent_of_three(device: str, problem: Problem, place: int) -> None:
    leaves = values(problem)
    tangents = [torch.zeros_like(leaf) for leaf in leaves]
    tangents[place] = torch.randn_like(leaves[place])
    truth = torch.autograd.functional.jvp(truth_of(problem), leaves, tuple(tangents))
    rows = loss_of(problem, reduction="none")
    with forward_ad.dual_level():
        given = [*leaves]
        given[place] = forward_ad.make_dual(leaves[place], tangents[place])
        close(forward_ad.unpack_dual(rows(*given)), truth)


def test_second_derivatives(device: str, problem: Problem) -> None:
    if getattr(problem.options.get("objective"), "reweighted", False):
        pytest.skip("has a gradient that is no derivative of its value, so no second one")
    leaves = values(problem)
    truth = torch.autograd.functional.hessian(lambda *x: truth_of(problem)(*x).sum(), leaves)
    total = loss_of(problem, reduction="sum")
    for ours in (
        func.hessian(total, (0, 1, 2)),
        func.jacrev(func.grad(total, (0, 1, 2)), (0, 1, 2)),
    ):
        for row, expected in zip(ours(*leaves), truth, strict=True):
            close(row, expected)


def test_batches(device: str, problem: Problem) -> None:
    """An ensemble of models: batches of input, weight and bias, and of their gradients."""
    stacks = tuple(torch.stack((leaf, 2 * leaf, -leaf)) for leaf in values(problem))
    rows, total = loss_of(problem, reduction="none"), loss_of(problem, reduction="sum")
    truth = [truth_of(problem)(*leaves) for leaves in zip(*stacks, strict=True)]
    close([torch.vmap(rows)(*stacks)], [torch.stack(truth)])
    grads = torch.vmap(func.grad(total, (0, 1, 2)))(*stacks)
    expected = [
        torch.autograd.grad(truth_of(problem)(*leaves).sum(), leaves)
        for leaves in zip(*(stack.requires_grad_() for stack in stacks), strict=True)
    ]
    close(grads, [torch.stack(parts) for parts in zip(*expected, strict=True)])


def exact_losses() -> dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]]:
    """Functions of the exact softmax and their truth, of input, weight and bias."""
    t, several = torch.tensor([3, 0, 10, 7, 3]), torch.randint(11, (5, 3))

    def cosine(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(F.normalize(h), F.normalize(w), b), t)

    def capped(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.cross_entropy(2 * torch.tanh(F.linear(h, w, b) / 2), t, reduction="none")

    return {
        "cross entropy": (
            lambda h, w, b: exact.exact_cross_entropy(h, w, t, bias=b),
            lambda h, w, b: F.cross_entropy(F.linear(h, w, b), t),
        ),
        "softcap": (
            lambda h, w, b: exact.exact_cross_entropy(
                h, w, t, bias=b, softcap=2.0, reduction="none"
            ),
            capped,
        ),
        "cosine": (lambda h, w, b: exact.exact_cross_entropy(h, w, t, bias=b, cosine=True), cosine),
        "logits": (
            lambda h, w, b: exact.logits(h, w, bias=b, temperature=0.5),
            lambda h, w, b: F.linear(h, w, b) / 0.5,
        ),
        "log_prob": (
            lambda h, w, b: exact.log_prob(h, w, several, bias=b),
            lambda h, w, b: F.linear(h, w, b).log_softmax(1).gather(1, several),
        ),
    }


@pytest.mark.parametrize("name", exact_losses())
def test_exact(device: str, name: str) -> None:
    ours, truth = exact_losses()[name]
    leaves, each = values(make_option_problem(5, 4, 11, 7, None)), (0, 1, 2)
    tangents = directions(leaves)
    stacks = tuple(torch.stack((leaf, 2 * leaf)) for leaf in leaves)
    close(func.jacrev(ours, each)(*leaves), func.jacrev(truth, each)(*leaves))
    close(func.jvp(ours, leaves, tangents), func.jvp(truth, leaves, tangents))
    close([torch.vmap(ours)(*stacks)], [torch.vmap(truth)(*stacks)])
    close(func.hessian(ours)(*leaves), func.hessian(truth)(*leaves))
    with forward_ad.dual_level():
        duals = [*map(forward_ad.make_dual, leaves, tangents)]
        close(forward_ad.unpack_dual(ours(*duals)), forward_ad.unpack_dual(truth(*duals)))


def test_topk_has_tangents(device: str) -> None:
    h, w, _ = values(make_option_problem(5, 4, 11, 7, None))
    tangents = directions((h, w))
    ours = func.jvp(lambda *x: exact.topk(*x, 3).values, (h, w), tangents)
    close(ours, func.jvp(lambda h, w: (h @ w.T).topk(3).values, (h, w), tangents))


TRANSFORMS: dict[str, Callable[[Callable[..., Tensor]], Callable[..., Any]]] = {
    "grad": lambda f: func.grad(f, (0, 1, 2)),
    "jvp": lambda f: lambda *x: func.jvp(f, x, x),
    "vmap": lambda f: lambda *x: torch.vmap(f, in_dims=(None, 0, 0))(x[0], x[1][None], x[2][None]),
    "hessian": func.hessian,
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("loss", ["plain", "per row", "exact"])
def test_compiled(native: str, loss: str, transform: str) -> None:
    torch._dynamo.reset()
    p = make_option_problem(5, 4, 11, 7, **OPTIONS.get(loss, OPTIONS["plain"]))
    rows = exact_losses()["cross entropy"][0] if loss == "exact" else loss_of(p)
    function = TRANSFORMS[transform](rows)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for ours, expected in zip(compiled(*values(p)), function(*values(p)), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("loss", ["plain", "arcface", "per row", "exact"])
def test_tangents_of_a_compiled_loss(native: str, loss: str) -> None:
    """Traced under a dual level; the graph of a call without one is not used again."""
    torch._dynamo.reset()
    p = make_option_problem(5, 4, 11, 7, **OPTIONS.get(loss, OPTIONS["plain"]))
    rows = exact_losses()["cross entropy"][0] if loss == "exact" else loss_of(p)
    leaves = values(p)
    compiled = torch.compile(rows, fullgraph=True, backend="aot_eager")
    compiled(*leaves)
    tangents = directions(leaves)
    with forward_ad.dual_level():
        ours = forward_ad.unpack_dual(compiled(*map(forward_ad.make_dual, leaves, tangents)))
    close(ours, func.jvp(rows, leaves, tangents))


def test_kernels_serve_one_level_of_reverse_mode(
    compiled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference would store logits [B, S]; here its functions are not there."""
    p = make_option_problem(5, 4, 11, 7, None)
    monkeypatch.setattr(functional, "reference", None)
    monkeypatch.setattr(reference_exact, "exact_loss_rows", None)
    func.grad(loss_of(p))(*values(p))
    func.grad(exact_losses()["cross entropy"][0])(*values(p))
    with pytest.raises(TypeError):
        func.jvp(loss_of(p), values(p), values(p))


def test_a_second_derivative_of_the_kernels_is_refused(compiled: str) -> None:
    """As with create_graph=True: never zero."""
    p = make_option_problem(5, 4, 11, 7, None)
    h, w, b = values(p)
    for loss in (loss_of(p), exact_losses()["cross entropy"][0]):
        gradient = func.grad(loss)(h, w.requires_grad_(), b)
        with pytest.raises(RuntimeError, match=r"second derivative.*SSC_BACKEND=reference"):
            gradient.sum().backward()


def test_sparse_gradients_are_refused(device: str, problem: Problem) -> None:
    total = loss_of(problem, sparse_grad=True)
    with pytest.raises(ValueError, match=r"sparse_grad must be False under torch\.func"):
        func.grad(total, (0, 1, 2))(*values(problem))
    plain = func.jvp(loss_of(problem), values(problem), values(problem))
    close(func.jvp(total, values(problem), values(problem)), plain)  # no gradient is wanted


@pytest.mark.parametrize("options", [{}, {"per_row": True}, {"replacement": False}], ids=str)
def test_module(device: str, options: dict[str, Any]) -> None:
    head = ssc.SampledSoftmaxLoss(4, 11, 7, **options)
    h, t = torch.randn(5, 4), torch.randint(11, (5,))
    parameters = dict(head.named_parameters())

    def loss(parameters: Any, h: Tensor, t: Tensor) -> Any:
        return func.functional_call(head, parameters, (h, t))

    torch.manual_seed(1)
    grads = func.grad(loss)(parameters, h, t)
    torch.manual_seed(1)
    expected = torch.autograd.grad(head(h, t), list(parameters.values()))
    torch.testing.assert_close(list(grads.values()), list(expected))
    if device == "reference":
        return  # torch.vmap knows no sizes that depend on data, which its draws have
    # Gradients per example, each with draws of its own.
    each = torch.vmap(func.grad(loss), in_dims=(None, 0, 0), randomness="different")
    assert each(parameters, h[:, None], t[:, None])["weight"].shape == (5, 11, 4)


def test_ids_out_of_range_in_a_batch(either: str) -> None:
    p = make_option_problem(5, 4, 11, 7, None, counts=False)
    for value in (-1, 11):
        batch = p.samples.ids.repeat(2, 1)
        batch[1, 3] = value

        def loss(ids: Tensor) -> Any:
            return ssc.sampled_softmax_loss(p.input, p.weight, p.target, ssc.Samples(ids))

        with pytest.raises(IndexError, match=rf"samples.ids must be .* got {value} at \[1, 3\]"):
            torch.vmap(loss)(batch)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_batches_of_upstream_gradients(either: str, problem: Problem, reduction: str) -> None:
    """`is_grads_batched`, which torch.autograd.functional.jacobian(vectorize=True) uses."""
    loss = problem.loss(reduction=reduction)
    upstream = torch.randn(3, *loss.shape, dtype=loss.dtype)

    def grads(given: Tensor, batched: bool) -> Leaves:
        return torch.autograd.grad(
            loss, problem.leaves, given, retain_graph=True, is_grads_batched=batched
        )

    expected = zip(*(grads(one, False) for one in upstream), strict=True)
    close(grads(upstream, True), [torch.stack(parts) for parts in expected])


@pytest.mark.parametrize("name", ["sampled_softmax_loss", "nce_loss"])
def test_tensorflow_functions(device: str, name: str) -> None:
    h, w, b = values(make_option_problem(5, 4, 11, 7, None))
    labels, ids = torch.randint(11, (5, 2)), torch.randperm(11)[:7]
    given = (ids, torch.rand(5, 2).double(), torch.rand(7).double())
    loss_fn = getattr(ssc.tf, name)

    def loss(h: Tensor, w: Tensor, b: Tensor) -> Any:
        return loss_fn(w, b, labels, h, 7, 11, num_true=2, sampled_values=given).sum()

    leaves = [leaf.clone().requires_grad_() for leaf in (h, w, b)]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    close(func.grad(loss, (0, 1, 2))(h, w, b), expected)
    along = sum((g * x).sum() for g, x in zip(expected, (h, w, b), strict=True))
    close([func.jvp(loss, (h, w, b), (h, w, b))[1]], [along])
