"""The value of the sampled loss: against float64, and what must not change it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

import sampled_softmax_cuda as ssc
from helpers.problem import SHAPES, Problem, make_problem
from helpers.samplers import parts
from helpers.truth import assert_close_to_truth, truth

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "sum": {"reduction": "sum"},
    "temperature": {"temperature": 0.25},
    "negatives": {"correction": "negatives"},
    "none": {"correction": "none"},
    "hits kept": {"remove_accidental_hits": False},
    "everything": {
        "temperature": 2.0,
        "correction": "negatives",
        "remove_accidental_hits": False,
        "reduction": "sum",
        "ignore_index": 0,
    },
}


def check_value(problem: Problem, **options: Any) -> None:
    """Loss and details of the chosen backend against float64."""
    with torch.no_grad():
        loss, details = problem.loss(return_details=True, **options)
        expected, expected_details = truth(problem, **options)
        same, same_details = problem.reference(return_details=True, **options)
    assert loss.dtype == problem.input.dtype
    assert_close_to_truth(loss, same, expected, "loss")
    for name in ("lse", "target_logit"):
        ours, reference = getattr(details, name), getattr(same_details, name)
        assert_close_to_truth(ours, reference, expected_details[name], name, slack=16)
    # Near a tie either answer is right.
    clear = expected_details["margin"].abs() > 1e-3
    assert torch.equal(details.error.double()[clear], expected_details["error"][clear])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_value(backend: str, shape: str, dtype: torch.dtype) -> None:
    problem = make_problem(*SHAPES[shape], dtype=dtype)
    check_value(problem, reduction="none")


@pytest.mark.parametrize("options", OPTIONS)
def test_options(backend: str, options: str) -> None:
    ignore_index = OPTIONS[options].get("ignore_index", -100)
    problem = make_problem(33, 40, 60, 50, ignored=3, ignore_index=ignore_index)
    check_value(problem, **OPTIONS[options])


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_optional_tensors(backend: str, bias: bool, counts: bool) -> None:
    check_value(make_problem(20, 24, 90, 70, bias=bias, counts=counts), reduction="none")


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_sample_weight(device: str, reduction: str) -> None:
    problem = make_problem(20, 8, 30, 10, ignored=4)
    weights = torch.rand(20)
    check_value(problem, sample_weight=weights, reduction=reduction)


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.bfloat16, torch.float32, torch.float32),  # autocast: the weight stays as it is
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float16, torch.float32, torch.bfloat16),
        (torch.float32, torch.float16, torch.float16),
    ],
    ids=str,
)
def test_mixed_dtypes(backend: str, dtypes: tuple[torch.dtype, ...]) -> None:
    problem = make_problem(17, 40, 70, 50)
    h, w, b = (t.detach().to(d) for t, d in zip(problem.leaves, dtypes, strict=True))
    mixed = Problem(h, w, b, problem.target, problem.samples)
    loss = mixed.loss(reduction="none")
    assert loss.dtype == torch.float32
    assert_close_to_truth(
        loss, mixed.reference(reduction="none"), truth(mixed, reduction="none")[0], "loss"
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_samples_removed_gives_zero(backend: str, dtype: torch.dtype) -> None:
    problem = make_problem(4, 8, 10, 5, dtype=dtype)
    h = (20 * problem.input.detach()).requires_grad_()  # logits far from 0 on both sides
    target = torch.full((4,), 7)
    samples = ssc.Samples(torch.full((9,), 7), torch.randn(9), torch.randn(4))
    loss, details = ssc.sampled_softmax_loss(
        h, problem.weight, target, samples, reduction="none", return_details=True
    )
    assert not loss.any()
    assert not details.error.any()
    assert torch.equal(details.lse, details.target_logit)
    loss.sum().backward()
    assert not h.grad.any()
    assert not problem.weight.grad.any()


def test_every_duplicate_of_a_hit_is_removed(backend: str) -> None:
    """TensorFlow masks the last one only; a removed hit must not add exp(0) either."""
    problem = make_problem(1, 4, 6, 1, counts=False)
    target = torch.tensor([2])
    without = ssc.Samples(torch.tensor([0, 5]))
    with_hits = ssc.Samples(torch.tensor([2, 0, 2, 5, 2]))
    losses = [
        ssc.sampled_softmax_loss(problem.input, problem.weight, target, samples)
        for samples in (without, with_hits)
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)


def test_kept_hit_counts_as_any_sample(backend: str) -> None:
    problem = make_problem(1, 4, 6, 1, counts=False)
    target = torch.tensor([2])
    loss = ssc.sampled_softmax_loss(
        problem.input,
        problem.weight,
        target,
        ssc.Samples(torch.tensor([2])),
        remove_accidental_hits=False,
    )
    torch.testing.assert_close(loss, torch.tensor(2.0).log())


def test_sign_and_sides_of_the_correction(device: str) -> None:
    """With zero logits the loss is a function of the counts alone."""
    h, w = torch.zeros(1, 2), torch.zeros(5, 2)
    n, n_target = torch.tensor([0.5, 4.0]), torch.tensor([2.0])
    samples = ssc.Samples(torch.tensor([1, 2]), n.log(), n_target.log())
    ours = {
        correction: float(
            ssc.sampled_softmax_loss(h, w, torch.tensor([0]), samples, correction=correction).exp()
        )
        for correction in ("both", "negatives", "none")
    }
    assert ours["both"] == pytest.approx((1 / 2 + 1 / 0.5 + 1 / 4) * 2)
    assert ours["negatives"] == pytest.approx(1 + 1 / 0.5 + 1 / 4)
    assert ours["none"] == pytest.approx(3)


def test_details_say_whether_a_sample_beats_the_target(backend: str) -> None:
    h, w = torch.eye(3), torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    w = torch.cat((w, torch.full((1, 3), 2.5)))
    samples = ssc.Samples(torch.tensor([3, 0]))
    _, details = ssc.sampled_softmax_loss(
        h, w, torch.tensor([0, 1, 2]), samples, return_details=True
    )
    assert details.error.tolist() == [1.0, 1.0, 0.0]
    assert details.target_logit.tolist() == [1.0, 2.0, 3.0]
    assert not details.lse.requires_grad


def test_details_ignore_multiplicity(backend: str) -> None:
    """Many copies of a weaker class add up in the loss, but none of them beats the target."""
    h, w = torch.ones(1, 1), torch.tensor([[1.0], [0.5]])
    samples = ssc.Samples(torch.ones(50, dtype=torch.int64))
    loss, details = ssc.sampled_softmax_loss(h, w, torch.tensor([0]), samples, return_details=True)
    assert details.error.item() == 0
    torch.testing.assert_close(loss, torch.tensor(1 + 50 * 2.718281828459045**-0.5).log())


@pytest.mark.parametrize("leading", [(), (1,), (3, 4), (2, 0), (2, 1, 5)])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_leading_shapes(device: str, leading: tuple[int, ...], reduction: str) -> None:
    weight, bias = torch.randn(20, 6), torch.randn(20)
    h, target = torch.randn(*leading, 6), torch.randint(20, leading)
    sample = ssc.UniformSampler(20).sample(target, 9)
    loss, details = ssc.sampled_softmax_loss(
        h, weight, target, sample, bias=bias, reduction=reduction, return_details=True
    )
    assert loss.shape == (leading if reduction == "none" else ())
    assert all(row.shape == leading for row in details)
    flat = ssc.sampled_softmax_loss(
        h.reshape(-1, 6),
        weight,
        target.reshape(-1),
        replace(sample, target_log_expected_count=sample.target_log_expected_count.reshape(-1)),
        bias=bias,
        reduction=reduction,
    )
    torch.testing.assert_close(loss.reshape(flat.shape), flat)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("num_rows", [0, 3], ids=["empty batch", "all ignored"])
def test_no_row_counts(backend: str, num_rows: int, reduction: str) -> None:
    problem = make_problem(num_rows, 5, 8, 4, ignored=num_rows)
    loss = problem.loss(reduction=reduction)
    assert loss.item() == 0.0
    loss.backward()
    for leaf in problem.leaves:
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_total_weight_zero_gives_zero(device: str) -> None:
    problem = make_problem(3, 5, 8, 4)
    loss = problem.loss(sample_weight=torch.zeros(3))
    assert loss.item() == 0.0


def test_non_contiguous_arguments(backend: str) -> None:
    problem = make_problem(24, 16, 40, 30)
    h = problem.input.detach().T.contiguous().T
    w = problem.weight.detach().T.contiguous().T
    wide = torch.randn(40, 64)
    wide[:, :16] = problem.weight.detach()
    b = torch.stack((problem.bias.detach(), problem.bias.detach()), 1)[:, 0]
    ids = torch.stack((problem.samples.ids, problem.samples.ids), 1)[:, 1]
    target = torch.stack((problem.target, problem.target), 1)[:, 1]
    n = problem.samples.log_expected_count
    n = torch.stack((n, n), 1)[:, 0]
    samples = replace(problem.samples, ids=ids, log_expected_count=n)
    expected = problem.loss(reduction="none").detach()
    for weight in (w, wide[:, :16]):
        loss = ssc.sampled_softmax_loss(h, weight, target, samples, bias=b, reduction="none")
        if backend == "reference":  # torch's own matmul rounds as the layout has it
            torch.testing.assert_close(loss, expected)
        else:
            assert torch.equal(loss, expected)


def test_ids_beyond_32_bits(backend: str) -> None:
    """A weight of 2^33 rows that are one row in memory: every id has to stay 64 bits wide."""
    num_classes = 2**33
    row = torch.randn(1, 4)
    weight = row.expand(num_classes, 4)
    bias = torch.zeros(1).expand(num_classes) if backend == "reference" else None
    ids = torch.tensor([5, 2**31 + 5, 2**32 + 5, num_classes - 1])
    target = torch.tensor([2**32 + 5, 5])
    h = torch.randn(2, 4)
    with torch.no_grad():
        loss, details = ssc.sampled_softmax_loss(
            h,
            weight,
            target,
            ssc.Samples(ids),
            bias=bias,
            reduction="none",
            return_details=True,
        )
    # Equal logits everywhere: the target, and three of four samples, since one is a hit.
    torch.testing.assert_close(loss, torch.full((2,), 4.0).log())
    torch.testing.assert_close(details.target_logit, h @ row[0])


def test_same_inputs_give_the_same_bits_for_any_number_of_threads(backend: str) -> None:
    problem = make_problem(300, 48, 700, 600)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            for leaf in problem.leaves:
                leaf.grad = None
            loss = problem.loss()
            loss.backward()
            results.append([loss.detach(), *(leaf.grad for leaf in problem.leaves)])
    finally:
        torch.set_num_threads(threads)
    if backend == "reference":  # torch's own matmul promises repeatability only
        results = [results[0], results[3]]
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_shapes_without_numbers(either: str, reduction: str) -> None:
    """On the meta device and under FakeTensorMode, as tools that only look at shapes do."""
    problem = make_problem(6, 5, 20, 8)
    shape = (6,) if reduction == "none" else ()
    meta = Problem(
        *(t.detach().to("meta").requires_grad_() for t in problem.leaves),
        problem.target.to("meta"),
        ssc.Samples(*(t.to("meta") for t in parts(problem.samples))),
    )
    assert meta.loss(reduction=reduction).shape == shape
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = Problem(
            *(mode.from_tensor(t) for t in problem.leaves),
            mode.from_tensor(problem.target),
            ssc.Samples(*(mode.from_tensor(t) for t in parts(problem.samples))),
        )
        loss = fake.loss(reduction=reduction)
        assert loss.shape == shape
        loss.sum().backward()
        assert fake.weight.grad.shape == (20, 5)


def test_total_of_many_rows_is_the_same_for_any_number_of_threads(native: None) -> None:
    """Many enough that torch's own sum is split between threads."""
    problem = make_problem(100_000, 3, 20, 8)
    threads = torch.get_num_threads()
    try:
        totals = set()
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            totals.add(problem.loss(reduction="sum").item())
    finally:
        torch.set_num_threads(threads)
    assert len(totals) == 1


# One backend serves all examples: that the fixture is not set up again for each is meant.
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_problem(compiled: str, data: st.DataObject) -> None:
    """Any shape and any options: value and gradients against float64."""
    rows, width, classes, samples = (
        data.draw(st.integers(low, high), label=name)
        for name, low, high in (("B", 0, 40), ("D", 1, 70), ("C", 1, 80), ("S", 1, 140))
    )
    options = {
        "temperature": data.draw(st.floats(0.1, 10)),
        "correction": data.draw(st.sampled_from(["both", "negatives", "none"])),
        "remove_accidental_hits": data.draw(st.booleans()),
        "reduction": data.draw(st.sampled_from(["none", "mean", "sum"])),
        "sparse_grad": data.draw(st.booleans()),
    }
    problem = make_problem(
        rows,
        width,
        classes,
        samples,
        bias=data.draw(st.booleans()),
        counts=data.draw(st.booleans()),
        ignored=data.draw(st.integers(0, rows)),
        seed=data.draw(st.integers(0, 1000)),
        dtype=data.draw(st.sampled_from(DTYPES)),
    )
    double = problem.to(torch.float64)
    ours = problem.loss(**options)
    same = problem.reference(**options)
    expected, _ = truth(double, **options)
    assert_close_to_truth(ours, same, expected, "loss", slack=16, scale=1 / options["temperature"])
    if rows == 0:
        return
    grads = [
        torch.autograd.grad(value.sum(), p.leaves)
        for value, p in ((ours, problem), (same, problem), (expected, double))
    ]
    sizes = [float(leaf.detach().abs().max()) for leaf in problem.leaves]
    largest = (sizes[1], sizes[0], 1.0)
    for name, size, a, b, c in zip(("input", "weight", "bias"), largest, *grads, strict=False):
        scale = size / options["temperature"]
        assert_close_to_truth(a, b, c, f"gradient of {name}", slack=16, scale=scale)
