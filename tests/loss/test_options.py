"""Several true classes, excluded classes and the options of the loss, against float64 truths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import sampled_softmax_cuda as ssc
from helpers.options import OPTIONS, SINGLE, check_options
from helpers.problem import Problem, make_option_problem
from helpers.samplers import parts
from helpers.truth import option_truth


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_targets", [None, 3], ids=["[*]", "[*, T]"])
@pytest.mark.parametrize("options", OPTIONS)
def test_options(backend: str, options: str, num_targets: int | None, dtype: torch.dtype) -> None:
    p = make_option_problem(13, 19, 60, 37, num_targets, **OPTIONS[options])
    check_options(p, dtype, sparse_grad=num_targets is None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("options", SINGLE)
def test_options_of_one_target(backend: str, options: str, dtype: torch.dtype) -> None:
    check_options(make_option_problem(13, 19, 60, 37, None, **SINGLE[options]), dtype)


@pytest.mark.parametrize(
    "options",
    ["softmax", "nce", "softcap", "cosine", "none"],
)
def test_excluded_classes(backend: str, options: str) -> None:
    p = make_option_problem(9, 8, 20, 33, 2, num_excluded=4, **OPTIONS[options])
    check_options(p, torch.float64)
    check_options(p, torch.float32, sparse_grad=True)


@pytest.mark.parametrize("sparse_grad", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("options", ["softmax", "nce", "nce softcap", "cosine"])
def test_copies_with_counts_of_their_own(backend: str, options: str, sparse_grad: bool) -> None:
    """Under sigmoids they are no single term, as they are in a logsumexp."""
    p = make_option_problem(9, 19, 30, 150, 2, num_excluded=2, even=False, **OPTIONS[options])
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        check_options(p, dtype, sparse_grad)


def test_copies_in_a_batch_of_ignored_rows(backend: str) -> None:
    p = make_option_problem(5, 6, 9, 40, None, even=False, objective="nce")
    p.target.fill_(-100)
    p.loss(sparse_grad=True).backward()
    assert not any(leaf.grad.to_dense().any() for leaf in p.leaves)


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1, 1), (2, 3, 2, 50, 4), (131, 123, 507, 389, 2), (1, 257, 4097, 1500, 3)],
    ids=str,
)
@pytest.mark.parametrize("kind", ["softmax", "nce"])
def test_shapes(backend: str, kind: str, shape: tuple[int, ...]) -> None:
    """One of everything; more samples than classes, all of them hits for some rows; tails."""
    p = make_option_problem(*shape, padding=shape[0] > 2, objective=kind)
    check_options(p, torch.float64)
    check_options(p, torch.float32, sparse_grad=True)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_combination(either: str, data: st.DataObject) -> None:
    """Every option on and off, in all combinations that are not refused."""
    draw = data.draw
    kind = draw(st.sampled_from(["softmax", "nce", "negative_sampling", "gbce"]))
    options: dict[str, Any] = {"temperature": draw(st.sampled_from([0.25, 1.0]))}
    corrections = ["both", "none"] + (["negatives"] if kind in ("softmax", "nce") else [])
    options["correction"] = draw(st.sampled_from(corrections))
    options["softcap"] = draw(st.sampled_from([None, 3.0]))
    options["cosine"] = draw(st.booleans())
    excluded = draw(st.integers(0, 3))
    options["remove_accidental_hits"] = excluded > 0 or draw(st.booleans())
    options["objective"] = kind
    if kind == "softmax":
        smoothed = options["softcap"] is None and not excluded
        options["objective"] = ssc.Softmax(
            margin=draw(st.sampled_from([0.0, 0.3])),
            angular_margin=draw(st.sampled_from([0.0, 0.4])) if options["cosine"] else 0.0,
            label_smoothing=draw(st.sampled_from([0.0, 0.15])) if smoothed else 0.0,
        )
        options["z_loss"] = draw(st.sampled_from([0.0, 0.01]))
    targets = None if kind == "gbce" else draw(st.sampled_from([None, 1, 2, 4]))
    # D = 1 has no angle with a slope, C = 1 no sampling rate.
    sizes = [draw(st.integers(*ends)) for ends in ((1, 9), (2, 20), (2, 30), (1, 40))]
    p = make_option_problem(
        *sizes,
        targets,
        num_excluded=excluded,
        counts=draw(st.booleans()),
        even=draw(st.booleans()),
        bias=draw(st.booleans()),
        padding=sizes[0] > 1,  # which leaves a row
        seed=draw(st.integers(0, 1 << 20)),
        **options,
    )
    check_options(p, torch.float64, sparse_grad=draw(st.booleans()))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions_count_rows_with_a_target(either: str, reduction: str) -> None:
    p = make_option_problem(12, 7, 30, 9, 3)
    factors = torch.rand(12, dtype=torch.float64)
    rows = option_truth(p)[0] * factors
    counted = (p.target != -100).any(dim=1)
    expected = rows.sum() / (1 if reduction == "sum" else factors[counted].sum())
    loss = p.loss(reduction=reduction, sample_weight=factors)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_several_targets_alike_are_one(either: str) -> None:
    """T copies of a class that share its label, and whose hits are removed together."""
    p = make_option_problem(8, 5, 20, 15, 1, counts=False)
    one = p.loss(objective="nce")
    # Softmax: T copies of the target add log T to what one gives where no sample is left.
    copies = Problem(*p.leaves, p.target.expand(8, 3).clone(), p.samples, {})
    rows, detail = copies.loss(reduction="none", return_details=True)
    single, single_detail = p.loss(reduction="none", return_details=True)
    at = (p.target != -100)[:, 0]
    p_true = (single_detail.target_logit - single_detail.lse).exp()
    torch.testing.assert_close(rows[at], (single + torch.log1p(2 * p_true))[at])
    assert torch.isfinite(one)
    torch.testing.assert_close(detail.target_logit, single_detail.target_logit)


def test_everything_sampled_is_cross_entropy_with_smoothing(either: str) -> None:
    h, w = torch.randn(6, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    target = torch.randint(9, (6,))
    every = ssc.Samples(torch.arange(9))
    ours = ssc.sampled_softmax_loss(h, w, target, every, objective=ssc.Softmax(label_smoothing=0.3))
    torch.testing.assert_close(ours, F.cross_entropy(h @ w.T, target, label_smoothing=0.3))


def test_infinite_count_leaves_a_sample_out(either: str) -> None:
    """With any correction, and for the fused loss as well as for the others."""
    p = make_option_problem(6, 5, 30, 12, None, padding=False)
    ids, log_count, _ = parts(p.samples)
    masked = ssc.Samples(ids, log_count.index_fill(0, torch.tensor([0, 7]), torch.inf), None)
    keep = torch.tensor([s for s in range(12) if s not in (0, 7)])
    fewer = ssc.Samples(ids[keep], log_count[keep], None)
    for options in (
        {},
        {"correction": "none"},
        {"objective": "nce"},
        {"objective": "negative_sampling"},
    ):
        a = Problem(*p.leaves, p.target, masked, options).loss()
        b = Problem(*p.leaves, p.target, fewer, options).loss()
        torch.testing.assert_close(a, b)


def test_reweighted_has_the_gradient_of_negatives(either: str) -> None:
    p = make_option_problem(9, 6, 40, 20, None)
    a = torch.autograd.grad(p.loss(objective=ssc.Softmax(reweighted=True)), p.leaves)
    b = torch.autograd.grad(p.loss(correction="negatives"), p.leaves)
    for ours, theirs in zip(a, b, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_gbce_beta() -> None:
    """The numbers of the paper's definition: alpha (t (1 - 1 / alpha) + 1 / alpha)."""
    for s, c, t in ((1, 3, 0.0), (256, 10_001, 0.75), (5, 6, 0.9)):
        alpha = s / (c - 1)
        assert ssc.GBCE(calibration=t).beta(s, c) == pytest.approx(
            alpha * (t * (1 - 1 / alpha) + 1 / alpha)
        )


def test_ignored_rows_may_hold_anything(backend: str) -> None:
    for kind in ("softmax", "nce"):
        p = make_option_problem(8, 5, 20, 15, 2, objective=kind)
        clean = torch.autograd.grad(p.loss(), p.leaves)
        q = p.to(torch.float64)
        with torch.no_grad():
            q.input[::4] = torch.nan
        for a, b in zip(torch.autograd.grad(q.loss(), q.leaves), clean, strict=True):
            assert torch.equal(a, b)


def test_bad_numbers_stay_in_their_row(backend: str) -> None:
    """Bad numbers of several targets too; test_bad_numbers.py has one of every loss."""
    for kind in ("softmax", "nce"):
        for bad in (torch.nan, torch.inf):
            p = make_option_problem(8, 5, 20, 15, 2, padding=False, objective=kind)
            clean = p.loss(reduction="none")
            with torch.no_grad():
                p.input[3] = bad
            rows = p.loss(reduction="none")
            assert torch.isnan(rows[3])
            rest = torch.arange(8) != 3
            torch.testing.assert_close(rows[rest], clean[rest], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_sparse_gradients_are_one_tensor(either: str, dtype: torch.dtype) -> None:
    """Rows of targets, samples and of the mean of all logits, added up and each there once."""
    p = make_option_problem(13, 19, 60, 37, 3, objective=ssc.Softmax(label_smoothing=0.1)).to(dtype)
    dense = torch.autograd.grad(p.loss(), p.leaves)
    p.loss(sparse_grad=True).backward()
    for leaf, expected in zip(p.leaves[1:], dense[1:], strict=True):
        assert leaf.grad is not None and leaf.grad.is_coalesced()
        eps = 8 * torch.finfo(dtype).eps
        scale = float(expected.abs().max())
        torch.testing.assert_close(leaf.grad.to_dense(), expected, rtol=eps, atol=eps * scale)


def test_empty_batch(backend: str) -> None:
    for kind in ("softmax", "nce"):
        p = make_option_problem(0, 5, 20, 15, 2, padding=False, objective=kind)
        loss = p.loss()
        loss.backward()
        assert float(loss.detach()) == 0.0
        assert p.weight.grad is not None and not p.weight.grad.any()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_empty_batch_of_wide_rows(backend: str, dtype: torch.dtype, reduction: str) -> None:
    """The kernels write the zeros of gradients, whole vectors of them."""
    leaves = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in ((0, 70), (40, 70))]
    target = torch.zeros(0, dtype=torch.int64)
    shared = ssc.Samples(torch.arange(33) % 20)
    own = ssc.Samples(torch.zeros(0, 33, dtype=torch.int64))
    for samples, options in (
        (shared, {}),
        (shared, {"softcap": 5.0}),
        (shared, {"cosine": True}),
        (own, {}),
    ):
        loss = ssc.sampled_softmax_loss(*leaves, target, samples, reduction=reduction, **options)
        assert not any(grad.any() for grad in torch.autograd.grad(loss.sum(), leaves))
    exact = ssc.exact_cross_entropy(*leaves, target, reduction=reduction)
    assert not any(grad.any() for grad in torch.autograd.grad(exact.sum(), leaves))
    assert ssc.topk(*leaves, 3).indices.shape == (0, 3)


# --- what autograd asks of a loss that has its gradients already ----------------------------------

REDUCED: dict[str, dict[str, Any]] = {
    "nce": {"objective": "nce", "num_excluded": 2},
    "softmax of three": {"num_targets": 3},
    "arcface": OPTIONS["arcface"],
    "label smoothing": OPTIONS["label smoothing"],
}


def reduced_problem(options: str) -> Problem:
    return make_option_problem(9, 12, 40, 30, **{"num_targets": None, **REDUCED[options]})


@pytest.mark.parametrize("sparse_grad", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("options", REDUCED)
def test_factors_from_above(device: str, options: str, sparse_grad: bool) -> None:
    """A factor scales the gradients; a second pass over the graph gives them again."""
    p = reduced_problem(options)
    once = torch.autograd.grad(p.loss(sparse_grad=sparse_grad), p.leaves)
    loss = p.loss(sparse_grad=sparse_grad)
    for factor in (0.25, -2.0):
        grads = torch.autograd.grad(factor * loss, p.leaves, retain_graph=True)
        for a, b in zip(grads, once, strict=True):
            assert a.is_sparse == b.is_sparse
            torch.testing.assert_close(a.to_dense(), factor * b.to_dense())


@pytest.mark.parametrize("options", REDUCED)
def test_only_gradients_that_are_wanted(device: str, options: str) -> None:
    p = reduced_problem(options)
    expected = torch.autograd.grad(p.loss(), p.leaves)
    for wanted in range(3):
        same = p.to(torch.float64)
        for i, leaf in enumerate(same.leaves):
            leaf.requires_grad_(i == wanted)
        same.loss().backward()
        for i, leaf in enumerate(same.leaves):
            assert (leaf.grad is not None) == (i == wanted)
        torch.testing.assert_close(same.leaves[wanted].grad, expected[wanted])
    with torch.no_grad():
        torch.testing.assert_close(p.loss(), p.reference())


@pytest.mark.parametrize("options", REDUCED)
def test_gradient_of_sample_weights(device: str, options: str) -> None:
    p = reduced_problem(options)
    factors = torch.linspace(0.5, 2, 9, dtype=torch.float64, requires_grad=True)
    grads = [
        torch.autograd.grad(p.loss(function, sample_weight=factors), [*p.leaves, factors])
        for function in (ssc.sampled_softmax_loss, ssc.reference.sampled_softmax_loss)
    ]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("options", REDUCED)
def test_double_backward_is_refused(compiled: str, options: str) -> None:
    p = reduced_problem(options)
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(p.loss(), p.leaves, create_graph=True)


@pytest.mark.parametrize("options", REDUCED)
def test_weight_computed_from_another(device: str, options: str) -> None:
    """The class matrix needs not be a leaf, nor the input: gradients go on to what they come of."""
    p = reduced_problem(options)
    base = [leaf.detach().clone().requires_grad_() for leaf in p.leaves]
    for function in (ssc.sampled_softmax_loss, ssc.reference.sampled_softmax_loss):
        parts = [leaf * 2 for leaf in base]
        loss = Problem(*parts, p.target, p.samples, p.options).loss(function)
        grads = torch.autograd.grad(loss, base)
        if function is ssc.sampled_softmax_loss:
            first = grads
    for a, b in zip(first, grads, strict=True):
        torch.testing.assert_close(a, b)
