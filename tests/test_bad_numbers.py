"""NaN, infinities and logits beyond the range of exp: what they give, and what they leave alone."""

from __future__ import annotations

import pytest
import torch

import sampled_softmax_cuda as ssc
from sampled_softmax_cuda import testing
from sampled_softmax_cuda.testing import make_problem


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_bad_numbers_stay_in_their_row(backend: str, bad: float) -> None:
    problem = make_problem(40, 16, 50, 37)
    expected = problem.loss(reduction="none")
    expected.sum().backward()
    clean = problem.input.grad.clone()
    h = problem.input.detach().clone()
    h[5, 3] = bad
    h.requires_grad_()
    loss = ssc.sampled_softmax_loss(
        h, problem.weight, problem.target, problem.samples, bias=problem.bias, reduction="none"
    )
    assert loss[5].isnan()
    others = torch.arange(40) != 5
    torch.testing.assert_close(loss[others], expected[others], rtol=1e-6, atol=1e-6)
    loss[others].sum().backward(retain_graph=True)
    torch.testing.assert_close(h.grad[others], clean[others], rtol=1e-5, atol=1e-6)
    h.grad = None
    loss.sum().backward()
    assert h.grad[5].isnan().all()
    torch.testing.assert_close(h.grad[others], clean[others], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padding", [torch.nan, torch.inf])
def test_bad_numbers_in_ignored_rows_reach_nothing(backend: str, padding: float) -> None:
    problem = make_problem(6, 8, 20, 10, ignored=2)
    h = problem.input.detach().clone()
    h[:2] = padding
    counts = problem.samples.target_log_expected_count.clone()
    counts[:2] = padding
    bad = testing.Problem(
        h.requires_grad_(),
        problem.weight,
        problem.bias,
        problem.target,
        problem.samples._replace(target_log_expected_count=counts),
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
    samples = ssc.Samples(torch.tensor([0, 4, 5, 9]), None, None)

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
    samples = ssc.Samples(torch.tensor([1]), None, None)
    loss = ssc.sampled_softmax_loss(h, w, torch.tensor([0, 0]), samples, reduction="none")
    assert loss.tolist() == [300.0, 0.0]
    loss.sum().backward()
    assert h.grad.flatten().tolist() == [300.0, 0.0]


def test_a_class_switched_off_by_its_bias(backend: str) -> None:
    h, w = torch.randn(3, 4), torch.randn(5, 4)
    bias = torch.tensor([0.0, -torch.inf, 0.0, 0.0, 0.0])
    target = torch.tensor([0, 2, 3])
    with_it = ssc.Samples(torch.tensor([1, 4]), None, None)
    without = ssc.Samples(torch.tensor([4]), None, None)
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
    samples = ssc.Samples(torch.tensor([0, 3, 1, 2]), None, None)
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
    samples = ssc.Samples(torch.arange(20), None, None)
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
