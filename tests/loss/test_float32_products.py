"""float32 is multiplied as torch's setting for the CPU says, where an instruction set gains by it.

The bounds: bf16 rounds a number x by at most 2^-8 |x|, so a product of two rounded numbers is off
by at most 2.01 · 2^-8 of its size, and a logit by that much of |h| |w| / temperature (Cauchy and
Schwarz). An error d of the logits changes a probability by a factor within exp(±2 d), and a
gradient's terms are rounded three times: E, a factor of it, and W or H.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import sampled_softmax_cuda as ssc
from helpers.backends import INSTRUCTION_SETS, unavailable, use_backend
from helpers.fp32_precision import fp32_precision
from helpers.problem import SHAPES, Problem, make_problem

ROUNDING = 2.0**-8
PRODUCT = 2.01 * ROUNDING
PARTS = 2.0**-15  # the same of a number in two parts of bf16, and of a product
FLOAT32 = 1e-5

_Results = tuple[Tensor, ...]


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    reason = unavailable(request.param)
    if reason is not None:
        pytest.skip(reason)
    with use_backend(request.param):
        yield request.param


def rounds(isa: str) -> bool:
    return isa in ("avx512_bf16", "amx_bf16")


def computed(problem: Problem, **options: Any) -> _Results:
    """The losses' total, and the gradients, dense."""
    loss = problem.loss(**options)
    grads = torch.autograd.grad(loss.sum(), problem.leaves)
    return (loss.detach(), *(grad.to_dense() for grad in grads))


def same(a: _Results, b: _Results) -> bool:
    return all(map(torch.equal, a, b))


def logit_error(problem: Problem, product: float) -> float:
    """A bound of the logits' error, by the largest norms."""
    h, w = problem.input.detach().double(), problem.weight.detach().double()
    largest = float(h.norm(dim=1).max() * w.norm(dim=1).max())
    return product * largest / float(problem.options.get("temperature", 1.0))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("setting", "bound"), [("high", PARTS), ("medium", PRODUCT)])
def test_logits(isa: str, shape: tuple[int, int, int, int], setting: str, bound: float) -> None:
    """The error of z_ij is at most `bound` · |h_i| |w_j|."""
    problem = make_problem(*shape)
    h, w, b = (leaf.detach() for leaf in problem.leaves)
    with fp32_precision(setting):
        z = ssc.logits(h, w, bias=b, temperature=0.5)
    exact = ssc.logits(h.double(), w.double(), bias=b.double(), temperature=0.5)
    norms = h.double().norm(dim=1)[:, None] * w.double().norm(dim=1) / 0.5
    allowed = bound * norms + 1e-6 * exact.abs()
    assert bool(((z - exact).abs() <= allowed).all())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_medium_is_bf16_where_there_are_units_for_it(
    isa: str, shape: tuple[int, int, int, int]
) -> None:
    """Logits have the bits that bf16 parameters give there, elsewhere those of float32."""
    h, w, b = (leaf.detach() for leaf in make_problem(*shape).leaves)
    with fp32_precision("highest"):
        exact = ssc.logits(h, w, bias=b)
        rounded = ssc.logits(h.bfloat16(), w.bfloat16(), bias=b)
    with fp32_precision("medium"):
        medium = ssc.logits(h, w, bias=b)
        of_one_factor = ssc.logits(h.bfloat16(), w, bias=b)
    assert torch.equal(medium, rounded if rounds(isa) else exact)
    if rounds(isa):
        assert torch.equal(of_one_factor, rounded)
        assert not torch.equal(medium, exact)


LOSSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "sparse": {"sparse_grad": True},
    "temperature": {"temperature": 0.7},
    "hits kept": {"remove_accidental_hits": False},
    "cap": {"softcap": 5.0},
    "sigmoids": {"objective": "negative_sampling"},
    "noise contrast": {"objective": "nce"},
    "smoothing": {"objective": ssc.Softmax(label_smoothing=0.1)},
    "z-loss": {"z_loss": 0.01},
}


def differs(isa: str, setting: str) -> bool:
    """Whether the setting changes any bits of the sums' products."""
    return rounds(isa) if setting == "medium" else isa == "amx_bf16"


@pytest.mark.parametrize("options", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize(
    ("setting", "product", "rounding"), [("high", PARTS, PARTS), ("medium", PRODUCT, ROUNDING)]
)
def test_losses_and_gradients(
    isa: str, options: dict[str, Any], setting: str, product: float, rounding: float
) -> None:
    """Against float64, each within a bound from the norms."""
    problem = make_problem(131, 123, 507, 389, ignored=3)
    problem.options = options
    with fp32_precision(setting):
        ours = computed(problem, reduction="sum")
        per_row = computed(problem, reduction="none")
    with fp32_precision("highest"):
        exact = computed(problem, reduction="sum")
        double = make_problem(131, 123, 507, 389, ignored=3).to(torch.float64)
        double.options = options
        truth = computed(double, reduction="sum")
    delta = logit_error(problem, product)
    rows = len(problem.target)
    assert abs(float(ours[0]) - float(truth[0])) <= rows * (2 * delta + FLOAT32)
    share = math.expm1(2 * delta) + 3 * rounding + FLOAT32
    largest = (
        problem.weight.abs().max() * 2,  # the sum of a row's |p_s| and |p_t - 1| is at most 2
        rows * problem.input.abs().max(),
        torch.tensor(float(rows)),
    )
    for result in (ours, per_row):
        for got, want, size in zip(result[1:], truth[1:], largest, strict=True):
            error = got.double() - want
            most = share * float(size.detach()) * max(1.0, 1 / options.get("temperature", 1))
            assert float(error.abs().max()) <= most
            assert float(error.norm()) <= rounding * float(want.norm())  # most roundings cancel
    assert same(ours, exact) != differs(isa, setting)


def test_values_that_bf16_holds_lose_nothing_but_in_e(isa: str) -> None:
    """Forward results of such float32 numbers are those of float32 to its rounding."""
    problem = make_problem(53, 123, 507, 97, dtype=torch.bfloat16).to(torch.float32)
    with fp32_precision("medium"):
        medium, details = problem.loss(reduction="none", return_details=True)
        exact = ssc.exact_cross_entropy(problem.input, problem.weight, problem.target)
    with fp32_precision("highest"):
        loss, expected = problem.loss(reduction="none", return_details=True)
        exact_loss = ssc.exact_cross_entropy(problem.input, problem.weight, problem.target)
    torch.testing.assert_close(medium, loss, rtol=FLOAT32, atol=FLOAT32)
    torch.testing.assert_close(exact, exact_loss, rtol=FLOAT32, atol=FLOAT32)
    assert torch.equal(details.target_logit, expected.target_logit)


def test_edges(isa: str) -> None:
    """No rows, one class, all hits removed, and numbers that bf16 can't hold."""
    with fp32_precision("medium"):
        empty = make_problem(0, 5, 7, 3)
        assert all(result.numel() == 0 or not result.any() for result in computed(empty))
        alone = make_problem(3, 4, 1, 2)
        assert all(not result.any() for result in computed(alone))
        problem = make_problem(9, 33, 40, 21)
        with torch.no_grad():
            problem.input[2, 7], problem.input[4, 3], problem.input[6, 1] = torch.nan, 3.4e38, 1e-40
        loss = problem.loss(reduction="none").detach()
        grad = torch.autograd.grad(problem.loss(), problem.input)[0]
    bad = torch.tensor([row in (2, 4) for row in range(9)])
    assert torch.isfinite(loss)[~bad].all()
    assert torch.isfinite(grad)[~bad].all()
    assert loss[2].isnan()
    assert grad[2].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes_do_not_ask(native: str, dtype: torch.dtype) -> None:
    problem = make_problem(31, 40, 90, 33, dtype=dtype)
    with fp32_precision("highest"):
        expected = computed(problem)
    with fp32_precision("medium"):
        assert same(computed(problem), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_cosines_are_products_of_float32(isa: str, reduction: str, dtype: torch.dtype) -> None:
    """Unit rows of 16-bit parameters are float32, so that they do ask."""
    problem = make_problem(31, 40, 90, 33, dtype=dtype, bias=False)
    problem.options = {"cosine": True, "temperature": 0.2, "reduction": reduction}
    with fp32_precision("highest"):
        expected = computed(problem)
    with fp32_precision("medium"):
        ours = computed(problem)
    assert same(ours, expected) == (dtype == torch.float64 or not rounds(isa))
    losses = (ours[0] - expected[0]).double().abs()
    logit = PRODUCT / 0.2
    rounding = torch.finfo(dtype).eps * float(expected[0].abs().max())
    assert float(losses.max()) <= 2 * logit * (1 if reduction == "none" else 31) + rounding


@pytest.mark.parametrize("setting", ["none", "ieee"])
def test_without_a_setting_nothing_is_rounded(isa: str, setting: str) -> None:
    problem = make_problem(31, 40, 90, 33)
    expected = computed(problem)
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = setting
    try:
        assert same(computed(problem), expected)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


STEPS: dict[str, Callable[[Problem], Tensor]] = {
    "total": lambda p: p.loss(),
    "rows": lambda p: p.loss(reduction="none").sum(),
    "total of options": lambda p: p.loss(softcap=4.0),
    "rows of options": lambda p: p.loss(softcap=4.0, reduction="none").sum(),
    "exact": lambda p: ssc.exact_cross_entropy(p.input, p.weight, p.target, bias=p.bias),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_the_backward_pass_has_the_forward_passs_setting(
    isa: str, step: Callable[[Problem], Tensor]
) -> None:
    """Also that of a second backward pass, which computes anew."""
    problem = make_problem(31, 40, 90, 33)

    def gradients(forward: str, backward: str) -> list[_Results]:
        with fp32_precision(forward):
            loss = step(problem)
        with fp32_precision(backward):
            return [torch.autograd.grad(loss, problem.leaves, retain_graph=True) for _ in range(2)]

    medium, highest = gradients("medium", "medium"), gradients("highest", "highest")
    for got, expected in (
        (gradients("medium", "highest"), medium),
        (gradients("highest", "medium"), highest),
    ):
        assert all(map(same, got, expected))
    assert same(medium[0], highest[0]) != rounds(isa)


def test_per_row_samples_are_multiplied_as_float32(isa: str) -> None:
    problem = make_problem(31, 40, 90, 31 * 5)
    problem.samples = ssc.Samples(problem.samples.ids.reshape(31, 5))
    with fp32_precision("highest"):
        expected = computed(problem)
    with fp32_precision("medium"):
        assert same(computed(problem), expected)


def test_set_float32_matmul_precision_sets_it(native: str) -> None:
    problem = make_problem(64, 64, 90, 64)
    before = torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    try:
        for name in ("medium", "high", "highest"):
            torch.set_float32_matmul_precision(name)
            by_name = computed(problem)
            with fp32_precision(name):
                assert same(computed(problem), by_name)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before[0]
        torch.backends.cuda.matmul.fp32_precision = before[1]
