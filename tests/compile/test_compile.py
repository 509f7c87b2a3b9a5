"""torch.compile with fullgraph=True gives the eager numbers, for any batch size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import nn

import sampled_softmax_cuda as ssc
from helpers.backends import use_backend
from helpers.problem import Problem, make_option_problem, make_problem
from sampled_softmax_cuda import exact

SIZES = (7, 9, 16)  # the second size makes the graph dynamic, the third must fit it


@pytest.fixture(autouse=True)
def _fresh_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def check(problem: Any, compiled: Any, eager: Any, exact: bool = True) -> None:
    """Value and gradients of two functions of (input, weight, bias, target, samples)."""
    arguments = (problem.input, problem.weight, problem.bias, problem.target, problem.samples)
    results = []
    for function in (compiled, eager):
        loss = function(*arguments)
        grads = torch.autograd.grad(loss.sum(), problem.leaves)
        results.append((loss.detach(), *grads))
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        assert a.is_sparse == b.is_sparse
        tolerance = 0.0 if exact else 1e-5
        torch.testing.assert_close(a.to_dense(), b.to_dense(), rtol=tolerance, atol=tolerance)


# The whole stack once, with Inductor; the rest needs only the tracing above it, which is quicker.
CASES = [
    ("inductor", "mean", False),
    ("inductor", "none", True),
    ("aot_eager", "none", False),
    ("aot_eager", "sum", False),
    ("aot_eager", "mean", True),
]


@pytest.mark.parametrize(("compiler", "reduction", "sparse_grad"), CASES)
def test_function(compiled: str, compiler: str, reduction: str, sparse_grad: bool) -> None:
    if compiled in ("simt", "ptx") and compiler == "inductor":
        pytest.skip("as on the CPU: Inductor makes nothing of our operators")

    def loss(h: Any, weight: Any, bias: Any, target: Any, samples: Any) -> torch.Tensor:
        return ssc.sampled_softmax_loss(
            h,
            weight,
            target,
            samples,
            bias=bias,
            reduction=reduction,
            sparse_grad=sparse_grad,
            temperature=0.5,
        )

    graph = torch.compile(loss, fullgraph=True, backend=compiler)
    for size in SIZES:
        problem = make_problem(size, 12, 60, 20, ignored=2)
        check(problem, graph, loss, exact=compiler != "inductor")


@pytest.mark.parametrize("sparse_grad", [False, True], ids=["dense", "sparse"])
def test_reference(sparse_grad: bool) -> None:
    """Without the compiled library too."""

    def loss(h: Any, weight: Any, bias: Any, target: Any, samples: Any) -> torch.Tensor:
        return ssc.sampled_softmax_loss(
            h, weight, target, samples, bias=bias, sparse_grad=sparse_grad
        )

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with use_backend("reference"):
        for size in SIZES:
            check(make_problem(size, 12, 60, 20, ignored=2), compiled, loss, exact=False)


# First one option of each way through the kernels; the others differ from these above them.
OPTIONS: dict[str, dict[str, Any]] = {
    "softmax": {"num_targets": 3},
    "nce": {"num_targets": 2, "objective": "nce", "num_excluded": 2},
    "per row": {"num_targets": None, "per_row": True},
    "nce, counts that differ": {"num_targets": None, "objective": "nce", "even": False},
    "gbce": {"num_targets": None, "objective": "gbce"},
    "softcap": {"num_targets": 1, "softcap": 2.0, "objective": ssc.Softmax(reweighted=True)},
    "arcface": {
        "num_targets": None,
        "cosine": True,
        "objective": ssc.Softmax(angular_margin=0.3),
        "num_excluded": 1,
    },
    "label smoothing": {"num_targets": None, "objective": ssc.Softmax(label_smoothing=0.1)},
    "nce per row": {"num_targets": 2, "per_row": True, "objective": "nce", "num_excluded": 2},
}


def quick_first(*names: str, quick: int = 1) -> list[Any]:
    """Parameters of which all but the first are slow: they take seconds each."""
    rest = (pytest.param(name, marks=pytest.mark.slow) for name in names[quick:])
    return [*names[:quick], *rest]


@pytest.mark.parametrize(
    ("num_classes", "sparse_grad"),
    [(500, False), (500, True), (15, True)],
    ids=["dense", "sparse", "sparse, few classes"],
)
@pytest.mark.parametrize("options", quick_first(*OPTIONS, quick=3))
def test_options(compiled: str, options: str, num_classes: int, sparse_grad: bool) -> None:
    """Losses that are composed of parts; row-sparse gradients have at most C rows, which counts
    where classes are fewer than samples and targets."""
    frames = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    p: Problem

    def loss(h: Any, weight: Any, bias: Any, target: Any, samples: Any) -> torch.Tensor:
        return ssc.sampled_softmax_loss(
            h, weight, target, samples, bias=bias, sparse_grad=sparse_grad, **p.options
        )

    graph = torch.compile(loss, fullgraph=True, backend=frames)
    for size in SIZES:
        p = make_option_problem(size, 12, num_classes, 20, **OPTIONS[options]).to(torch.float32)
        check(p, graph, loss, exact=False)
    assert frames.frame_count <= 2


@pytest.mark.parametrize("options", quick_first("nce", "softcap", "arcface", "per row"))
def test_sparse_gradients_with_inductor(native: None, options: str) -> None:
    p = make_option_problem(9, 12, 60, 20, **OPTIONS[options]).to(torch.float32)

    def loss(h: Any, weight: Any, bias: Any, target: Any, samples: Any) -> torch.Tensor:
        return ssc.sampled_softmax_loss(
            h, weight, target, samples, bias=bias, sparse_grad=True, **p.options
        )

    check(p, torch.compile(loss, fullgraph=True), loss, exact=False)


@pytest.mark.parametrize("sparse_grad", [False, True], ids=["dense", "sparse"])
def test_negatives_from_a_key(compiled: str, sparse_grad: bool) -> None:
    sampler = ssc.LogUniformSampler(60)

    def loss(h: Any, weight: Any, bias: Any, target: Any, samples: Any) -> torch.Tensor:
        return ssc.sampled_softmax_loss(
            h, weight, target, samples, bias=bias, sparse_grad=sparse_grad
        )

    graph = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for size in SIZES:
        p = make_problem(size, 12, 60, 20)
        keyed = sampler.sample_keyed(p.target, 7)
        problem = SimpleNamespace(**{**vars(p), "samples": keyed, "leaves": p.leaves})
        check(problem, graph, loss, exact=False)


def test_one_graph_serves_every_batch_size(native: None) -> None:
    frames = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def loss(h: Any, weight: Any, bias: Any, target: Any, samples: Any) -> torch.Tensor:
        return ssc.sampled_softmax_loss(h, weight, target, samples, bias=bias)

    compiled = torch.compile(loss, fullgraph=True, backend=frames)
    for size in (8, 13, 27):
        problem = make_problem(size, 12, 60, 20)
        torch._dynamo.mark_dynamic(problem.input, 0)
        torch._dynamo.mark_dynamic(problem.target, 0)
        torch._dynamo.mark_dynamic(problem.samples.target_log_expected_count, 0)
        check(problem, compiled, loss)
    assert frames.frame_count == 1


def test_details_and_weights(native: None) -> None:
    def loss(h: Any, weight: Any, bias: Any, target: Any, samples: Any) -> torch.Tensor:
        value, details = ssc.sampled_softmax_loss(
            h,
            weight,
            target,
            samples,
            bias=bias,
            sample_weight=torch.ones_like(target, dtype=torch.float32) / 3,
            return_details=True,
        )
        return value + (details.lse + details.error).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    check(make_problem(9, 12, 60, 20, ignored=1), compiled, loss, exact=False)


def test_without_gradients(native: None) -> None:
    problem = make_problem(9, 12, 60, 20)
    compiled = torch.compile(lambda: problem.loss(), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(), problem.loss())


@pytest.mark.parametrize("sparse_grad", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("replacement", [True, False])
def test_training_a_module(native: None, replacement: bool, sparse_grad: bool) -> None:
    """Trunk, draw and loss in one graph; the same draws and steps as without compilation."""

    def train(compiled: bool) -> list[torch.Tensor]:
        torch.manual_seed(1)
        trunk = nn.Linear(6, 12)
        head = ssc.SampledSoftmaxLoss(
            12, 80, 20, replacement=replacement, sparse_grad=sparse_grad, sampler="uniform"
        )
        optimizer = torch.optim.SGD([*trunk.parameters(), *head.parameters()], lr=0.5)

        def step(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            loss: torch.Tensor = head(trunk(x), target)
            return loss

        run = torch.compile(step, fullgraph=True, backend="aot_eager") if compiled else step
        losses = []
        for size in SIZES:
            x, target = torch.randn(size, 6), torch.randint(80, (size,))
            optimizer.zero_grad()
            loss = run(x, target)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return [*losses, head.weight.detach(), trunk.weight.detach()]

    for a, b in zip(train(True), train(False), strict=True):
        torch.testing.assert_close(a, b)


def test_module_with_inductor_draws_anew_at_every_call(native: None) -> None:
    head = ssc.SampledSoftmaxLoss(12, 5000, 20)
    compiled = torch.compile(head, fullgraph=True)
    h, target = torch.randn(8, 12, requires_grad=True), torch.randint(5000, (8,))
    losses = [compiled(h, target) for _ in range(3)]
    assert len({loss.item() for loss in losses}) == 3
    losses[0].backward()
    assert h.grad is not None


@pytest.mark.parametrize(
    "options", [{}, {"softcap": 2.0}, {"cosine": True, "softcap": 3.0}], ids=str
)
def test_eval_mode(native: None, options: dict[str, Any]) -> None:
    head = ssc.SampledSoftmaxLoss(12, 500, 20, **options).eval()
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    for size in SIZES:
        h, target = torch.randn(size, 12, requires_grad=True), torch.randint(500, (size,))
        results = []
        for function in (compiled, head):
            loss = function(h, target)
            results.append((loss.detach(), *torch.autograd.grad(loss, [h, head.weight])))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


def test_autocast(native: None) -> None:
    head = ssc.SampledSoftmaxLoss(12, 500, 20).eval()

    def loss(h: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value: torch.Tensor = head(h, target)
            return value

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    h, target = torch.randn(9, 12, dtype=torch.bfloat16), torch.randint(500, (9,))
    assert compiled(h, target).dtype == torch.float32
    torch.testing.assert_close(compiled(h, target), loss(h, target))


@pytest.mark.parametrize("options", quick_first(*OPTIONS, quick=3))
def test_ids_out_of_range(either: str, options: str) -> None:
    """No value is looked at while tracing: the graph checks, as the kernels of the plain loss do.

    A CPU's rule: on a GPU the row of such a target is NaN.
    """
    p = make_option_problem(5, 4, 60, 6, **OPTIONS[options])

    def loss(target: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        samples = replace(p.samples, ids=ids)
        value: torch.Tensor = ssc.sampled_softmax_loss(
            p.input, p.weight, target, samples, bias=p.bias, **p.options
        )
        return value

    given = {"target": p.target, "ids": p.samples.ids}
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**given), loss(**given))
    for name, ids in given.items():
        for value in (-1, 60):
            bad = {**given, name: ids.clone()}
            bad[name].view(-1)[2] = value
            with pytest.raises(RuntimeError, match=rf"{name} must be in \[0, C\)"):
                compiled(**bad)
            with pytest.raises(IndexError, match=rf"{name} must be in \[0, C=60\).*got {value}"):
                loss(**bad)


@pytest.mark.parametrize(("name", "message"), [("target", r"target\[2\] = 60"), ("ids", "ids")])
def test_ids_out_of_range_of_the_plain_loss(native: None, name: str, message: str) -> None:
    p = make_problem(5, 4, 60, 6)

    def loss(target: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        samples = replace(p.samples, ids=ids)
        return ssc.sampled_softmax_loss(p.input, p.weight, target, samples)

    given = {"target": p.target.clone(), "ids": p.samples.ids.clone()}
    given[name][2] = 60
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match=message + ".* is out of range"):
        compiled(**given)


def test_ids_out_of_range_with_inductor(native: None) -> None:
    """Which must not take the check for dead code."""
    p = make_problem(5, 4, 60, 6)

    def loss(target: torch.Tensor) -> torch.Tensor:
        return ssc.sampled_softmax_loss(p.input, p.weight, target, p.samples, objective="nce")

    compiled = torch.compile(loss, fullgraph=True)
    target = p.target.clone()
    compiled(target)
    target[2] = 60
    with pytest.raises(RuntimeError, match=r"target must be in \[0, C\)"):
        compiled(target)


@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}, {"cosine": True}], ids=str)
def test_ids_out_of_range_of_the_exact_loss(either: str, options: dict[str, Any]) -> None:
    h, w, target = torch.randn(5, 4), torch.randn(60, 4), torch.randint(60, (5,))
    losses = (exact.exact_cross_entropy, exact.log_prob)
    target[2] = 60
    for loss in losses:
        compiled = torch.compile(
            lambda t, loss=loss: loss(h, w, t, **options), fullgraph=True, backend="aot_eager"
        )
        with pytest.raises(RuntimeError, match=r"must be in \[0, C\)"):
            compiled(target)


def test_a_target_out_of_range_is_nan_on_a_gpu(simt: str) -> None:
    p = make_option_problem(5, 4, 60, 6, None, objective="nce", padding=False)
    target = p.target.clone()
    target[2] = 60

    def loss(target: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = ssc.sampled_softmax_loss(
            p.input, p.weight, target, p.samples, reduction="none", **p.options
        )
        return value

    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        assert function(target).isnan().tolist() == [False, False, True, False, False]
