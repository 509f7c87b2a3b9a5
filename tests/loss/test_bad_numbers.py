"""NaN, infinities and logits beyond the range of exp: what they give, and what they leave alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sampled_softmax_cuda as ssc
from helpers.problem import Problem, make_problem
from helpers.samplers import parts
from sampled_softmax_cuda.exact import exact_cross_entropy

BAD = [torch.nan, torch.inf, -torch.inf]
LOSSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "reweighted": {"objective": ssc.Softmax(reweighted=True)},
    "nce": {"objective": "nce"},
    "negative sampling": {"objective": "negative_sampling"},
    "gbce": {"objective": "gbce"},
    "softcap": {"softcap": 5.0},
    "nce softcap": {"objective": "nce", "softcap": 5.0},
    "cosine": {"cosine": True},
    "margins": {"cosine": True, "objective": ssc.Softmax(margin=0.2, angular_margin=0.1)},
    "smoothing": {"objective": ssc.Softmax(label_smoothing=0.1)},
}
OF_ROWS = [name for name, o in LOSSES.items() if "cosine" not in o and name != "smoothing"]
SIGMOIDS = ["nce", "negative sampling", "gbce"]


@dataclass
class Result:
    loss: Tensor
    """The loss of each row."""
    input: Tensor
    weight: Tensor
    bias: Tensor


class Step:
    """A step whose row 2 has class 2 as target; sample 3, of row 2 alone if they are the rows' own,
    is class 39, and no other class is both."""

    def __init__(self, name: str, per_row: bool) -> None:
        g = torch.Generator().manual_seed(1)
        self.options = LOSSES[name]
        self.input = torch.randn(6, 20, generator=g)
        self.weight = torch.randn(40, 20, generator=g) / 20**0.5
        self.bias = torch.randn(40, generator=g)
        self.target = torch.arange(6)
        ids = torch.randint(6, 39, (6, 24) if per_row else (24,), generator=g)
        ids[(2, 3) if per_row else (3,)] = 39
        log_count = torch.randn(40, generator=g)[ids]
        self.samples = ssc.Samples(ids, log_count, torch.randn(6, generator=g))
        self.per_row = per_row

    def run(self, reduction: str = "none") -> Result:
        leaves = [t.clone().requires_grad_() for t in (self.input, self.weight, self.bias)]
        h, w, b = leaves
        loss = ssc.sampled_softmax_loss(
            h, w, self.target, self.samples, bias=b, reduction=reduction, **self.options
        )
        loss.sum().backward()
        return Result(loss.detach(), *(leaf.grad for leaf in leaves))

    def others(self) -> Tensor:
        return torch.arange(6) != 2

    def classes(self) -> Tensor:
        """Those that row 2 has as target or sample, [C] bool."""
        has = torch.zeros(40, dtype=torch.bool)
        has[self.samples.ids[2] if self.per_row else self.samples.ids] = True
        has[2] = True
        return has


CASES = [(name, False) for name in LOSSES] + [(name, True) for name in OF_ROWS]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(("name", "per_row"), CASES)
def test_bad_numbers_stay_in_their_row(backend: str, name: str, per_row: bool, bad: float) -> None:
    """Its loss and its gradient are NaN, whatever the loss makes of infinite logits."""
    step = Step(name, per_row)
    clean = step.run()
    step.input[2, 3] = bad
    got, others = step.run(), step.others()
    assert got.loss[2].isnan()
    assert got.input[2].isnan().all()
    torch.testing.assert_close(got.loss[others], clean.loss[others], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.input[others], clean.input[others], rtol=1e-5, atol=1e-6)
    # Only the row's own classes have lost their gradients.
    assert got.weight[2].isnan().any()
    elsewhere = ~step.classes()
    assert got.weight[elsewhere].isfinite().all()
    assert got.bias[elsewhere].isfinite().all()
    total = step.run("sum")  # where gradients are taken in the forward pass
    assert total.loss.isnan()
    assert total.input[2].isnan().all()
    torch.testing.assert_close(total.input[others], clean.input[others], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", ["weight", "bias"])
@pytest.mark.parametrize(("name", "per_row"), CASES)
def test_bad_numbers_of_a_target(
    backend: str, name: str, per_row: bool, place: str, bad: float
) -> None:
    """They reach the rows with this target alone."""
    if place == "bias" and "softcap" in name and bad != torch.nan:
        pytest.skip("a cap bounds what a bias adds")
    step = Step(name, per_row)
    clean = step.run()
    getattr(step, place)[(2, 3) if place == "weight" else 2] = bad
    got, others = step.run(), step.others()
    torch.testing.assert_close(got.loss[others], clean.loss[others], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.input[others], clean.input[others], rtol=1e-5, atol=1e-6)
    if place == "bias" and bad == torch.inf and name == "gbce":
        assert got.loss[2].isfinite()  # the target is as right as can be
    elif place == "bias" and bad == -torch.inf:
        assert got.loss[2] == torch.inf or name in ("reweighted", "smoothing")
        assert not got.loss[2].isfinite()
    else:
        assert not got.loss[2].isfinite()
    if bad != bad:
        assert got.loss[2].isnan()
        assert got.input[2].isnan().all()


@pytest.mark.parametrize("place", ["weight", "bias"])
@pytest.mark.parametrize(("name", "per_row"), CASES)
def test_nan_of_a_sample(backend: str, name: str, per_row: bool, place: str) -> None:
    """It reaches every row that has the sample."""
    step = Step(name, per_row)
    clean = step.run()
    getattr(step, place)[(39, 3) if place == "weight" else 39] = torch.nan
    got, rows = step.run(), torch.arange(6) == 2
    if not per_row:
        rows[:] = True
    assert got.loss[rows].isnan().all()
    assert got.input[rows].isnan().all()
    torch.testing.assert_close(got.loss[~rows], clean.loss[~rows], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.input[~rows], clean.input[~rows], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("name", ["plain", "reweighted", *SIGMOIDS])
def test_infinite_biases_of_a_sample(backend: str, name: str, per_row: bool) -> None:
    step = Step(name, per_row)
    rows = torch.full((6,), not per_row)
    rows[2] = True
    step.bias[39] = torch.inf
    got = step.run()
    assert (got.loss[rows] == torch.inf if name in SIGMOIDS else got.loss[rows].isnan()).all()
    assert got.loss[~rows].isfinite().all()
    # Switched off: as if it had not been sampled.
    step.bias[39] = -torch.inf
    got = step.run()
    ids, log_count, target_log_count = parts(step.samples)
    log_count = log_count.masked_fill(ids == 39, torch.inf)
    step.samples = ssc.Samples(ids, log_count, target_log_count)
    step.bias[39] = 0
    want = step.run()
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.input, want.input, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.weight, want.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_bad_numbers_stay_in_their_row_of_the_exact_loss(
    backend: str, softcap: float | None, bad: float
) -> None:
    step = Step("plain", False)
    options = {"bias": step.bias, "softcap": softcap, "reduction": "none"}
    step.input[2, 3] = bad
    h = step.input.requires_grad_()
    loss = exact_cross_entropy(h, step.weight, step.target, **options)
    loss.sum().backward()
    assert loss.isnan().nonzero().flatten().tolist() == [2]
    assert h.grad[2].isnan().all()
    assert h.grad[step.others()].isfinite().all()


@pytest.mark.parametrize("loss", ["softmax", "nce"])
def test_masked_samples_may_hold_anything_under_a_link(backend: str, loss: str) -> None:
    """A count of +inf leaves a sample out, infinite logit or not."""
    step = Step("nce" if loss == "nce" else "softcap", False)
    ids, log_count, target_log_count = parts(step.samples)
    step.samples = ssc.Samples(ids, log_count.masked_fill(ids == 39, torch.inf), target_log_count)
    clean = step.run().loss
    step.bias[39] = torch.inf
    assert torch.equal(step.run().loss, clean)


@pytest.mark.parametrize("padding", [torch.nan, torch.inf])
def test_bad_numbers_in_ignored_rows_reach_nothing(backend: str, padding: float) -> None:
    problem = make_problem(6, 8, 20, 10, ignored=2)
    h = problem.input.detach().clone()
    h[:2] = padding
    counts = problem.samples.target_log_expected_count.clone()
    counts[:2] = padding
    bad = Problem(
        h.requires_grad_(),
        problem.weight,
        problem.bias,
        problem.target,
        replace(problem.samples, target_log_expected_count=counts),
    )
    loss = bad.loss()
    assert loss.isfinite()
    loss.backward()
    assert all(bool(leaf.grad.isfinite().all()) for leaf in bad.leaves)
    assert torch.equal(h.grad[:2], torch.zeros(2, 8))


@pytest.mark.parametrize("sparse_grad", [False, True])
@pytest.mark.parametrize("padding", [torch.nan, torch.inf])
def test_bad_numbers_of_a_class_that_stands_for_ignored(
    backend: str, padding: float, sparse_grad: bool
) -> None:
    """ignore_index may be a class of its own; its row of W is as good as absent."""
    h, w, b = torch.randn(6, 8), torch.randn(20, 8), torch.randn(20)
    target = torch.tensor([3, 7, 3, 5, 1, 2])
    kept = target != 3
    h[~kept], w[3], b[3] = padding, padding, padding
    samples = ssc.Samples(torch.tensor([0, 4, 5, 9]))

    def grads(rows: torch.Tensor) -> list[torch.Tensor]:
        leaves = [x.clone().requires_grad_() for x in (h[rows], w, b)]
        loss = ssc.sampled_softmax_loss(
            leaves[0], leaves[1], target[rows], samples,
            bias=leaves[2], ignore_index=3, sparse_grad=sparse_grad,
        )  # fmt: skip
        loss.backward()
        return [loss.detach(), *(leaf.grad.to_dense() for leaf in leaves)]

    loss, grad_input, *rest = grads(torch.full((6,), True))
    want_loss, want_input, *want_rest = grads(kept)
    assert not grad_input[~kept].any()
    for got, want in zip(
        (loss, grad_input[kept], *rest), (want_loss, want_input, *want_rest), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_large_logits_neither_overflow_nor_vanish(backend: str) -> None:
    """A sample far above the target, and one far below: both beyond exp's range in float32."""
    h = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    w = torch.tensor([[0.0], [300.0]])
    samples = ssc.Samples(torch.tensor([1]))
    loss = ssc.sampled_softmax_loss(h, w, torch.tensor([0, 0]), samples, reduction="none")
    assert loss.tolist() == [300.0, 0.0]
    loss.sum().backward()
    assert h.grad.flatten().tolist() == [300.0, 0.0]


def test_a_class_switched_off_by_its_bias(backend: str) -> None:
    h, w = torch.randn(3, 4), torch.randn(5, 4)
    bias = torch.tensor([0.0, -torch.inf, 0.0, 0.0, 0.0])
    target = torch.tensor([0, 2, 3])
    with_it = ssc.Samples(torch.tensor([1, 4]))
    without = ssc.Samples(torch.tensor([4]))
    torch.testing.assert_close(
        ssc.sampled_softmax_loss(h, w, target, with_it, bias=bias),
        ssc.sampled_softmax_loss(h, w, target, without, bias=bias),
    )


@pytest.mark.parametrize("level", [-80.0, -1000.0])
def test_a_target_switched_off_among_low_logits(backend: str, level: float) -> None:
    """Its loss is infinite, but the gradient, p less one hot, is that of the samples' softmax."""
    h, w = torch.randn(3, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    bias = torch.full((6,), level)
    bias[0] = -torch.inf
    bias.requires_grad_()
    samples = ssc.Samples(torch.tensor([0, 3, 1, 2]))
    loss = ssc.sampled_softmax_loss(
        h, w, torch.zeros(3, dtype=torch.int64), samples, bias=bias, reduction="none"
    )
    assert (loss == torch.inf).all()
    loss.sum().backward()
    p = (h @ w[1:4].T).softmax(dim=-1).detach()
    expected = torch.zeros(3, 6)
    expected[:, 1:4] = p
    expected[:, 0] = -1.0
    torch.testing.assert_close(bias.grad, expected.sum(dim=0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(h.grad, expected @ w.detach(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(w.grad, expected.T @ h.detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bad", [-1, 50, 2**40, -(2**62)])
def test_ids_out_of_range(compiled: str, bad: int) -> None:
    """The CPU names the first of them (test_errors.py). A GPU, which would have to be waited for,
    follows none, and shows that something is wrong where it is."""
    bad_target, bad_sample = (make_problem(6, 8, 50, 20, ignored=2) for _ in range(2))
    bad_target.target[4] = bad
    bad_sample.samples.ids[3] = bad
    if compiled == "native":
        for problem in (bad_target, bad_sample):
            with pytest.raises(IndexError, match=f"got {bad}"):
                problem.loss()
        return
    loss = bad_target.loss(reduction="none")
    assert loss.isnan().nonzero().flatten().tolist() == [4]
    loss.sum().backward()
    loss = bad_sample.loss(reduction="none")
    assert loss[2:].isnan().all()
    assert not loss[:2].any()


@pytest.mark.parametrize(("norm", "expected"), [(1e18, None), (1e20, 0.0), (1e-24, 0.0)])
@pytest.mark.parametrize("which", ["input", "weight"])
def test_cosines_of_extreme_norms(
    device: str, which: str, norm: float, expected: float | None
) -> None:
    """docs/numerics.md: float32 can't square norms above 1.8e19, whose cosines are 0, as those of
    rows that are near zero; never NaN."""
    torch.manual_seed(0)
    h, weight = torch.randn(3, 16), torch.randn(20, 16)
    rows = h if which == "input" else weight
    rows[0] *= norm / rows[0].norm()
    h.requires_grad_()
    weight.requires_grad_()
    samples = ssc.Samples(torch.arange(20))
    target = torch.tensor([1, 2, 3])
    cosine = torch.nn.functional.normalize(h.detach().double(), dim=-1, eps=0)
    cosine = cosine @ torch.nn.functional.normalize(weight.detach().double(), dim=-1, eps=0).T
    if expected is not None:
        (cosine if which == "input" else cosine.T)[0] = expected
    loss = ssc.sampled_softmax_loss(h, weight, target, samples, cosine=True, temperature=0.1)
    truth = torch.nn.functional.cross_entropy(cosine / 0.1, target)
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-5)
    loss.backward()
    assert not h.grad.isnan().any()
    assert not weight.grad.isnan().any()
