"""Factors of rows: class_weight, sample_weight, z_loss, for sampled and exact losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import sampled_softmax_cuda as ssc
from helpers.options import OPTIONS, SINGLE
from helpers.problem import make_option_problem
from helpers.truth import option_truth

B, D, C, S = 12, 8, 30, 25


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    h = torch.randn(B, D, requires_grad=True)
    weight = torch.randn(C, D, requires_grad=True)
    target = torch.randint(C, (B,))
    target[3] = -100
    return h, weight, target, torch.rand(C) + 0.1


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_class_weight_is_that_of_cross_entropy(device: str, reduction: str) -> None:
    """Every class sampled once, and the exact loss."""
    h, weight, target, class_weight = problem()
    want = F.cross_entropy(h @ weight.T, target, class_weight, reduction=reduction)
    options: dict[str, Any] = {"class_weight": class_weight, "reduction": reduction}
    every = ssc.Samples(torch.arange(C))
    for got in (
        ssc.sampled_softmax_loss(h, weight, target, every, **options),
        ssc.exact_cross_entropy(h, weight, target, **options),
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        for ours, theirs in zip(
            torch.autograd.grad(got.sum(), (h, weight)),
            torch.autograd.grad(want.sum(), (h, weight), retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_product_of_weights_is_not_rounded(device: str, dtype: torch.dtype) -> None:
    """300 * 300 is infinite in float16; in bfloat16 it is 90112."""
    h, weight, target, _ = problem()
    large = torch.full((B,), 300.0, dtype=dtype)
    of_class = torch.full((C,), 300.0, dtype=dtype)
    factors = {"sample_weight": large, "class_weight": of_class, "reduction": "sum"}
    every = ssc.Samples(torch.arange(C))
    for got, plain in (
        (
            ssc.sampled_softmax_loss(h, weight, target, every, **factors),
            ssc.sampled_softmax_loss(h, weight, target, every, reduction="sum"),
        ),
        (
            ssc.exact_cross_entropy(h, weight, target, **factors),
            ssc.exact_cross_entropy(h, weight, target, reduction="sum"),
        ),
    ):
        torch.testing.assert_close(got, 90_000 * plain)


@pytest.mark.parametrize("name", ["softmax", "nce", "softcap", "arcface", "gbce", "reweighted"])
def test_class_weight_multiplies_sample_weight(device: str, name: str) -> None:
    h, weight, target, class_weight = problem()
    samples = ssc.LogUniformSampler(C).sample(target, S)
    factors = torch.rand(B)
    options = {**OPTIONS, **SINGLE}[name]
    arguments = (h, weight, target, samples)
    got = ssc.sampled_softmax_loss(
        *arguments, class_weight=class_weight, sample_weight=factors, **options
    )
    both = factors * class_weight[target.clamp_min(0)]
    want = ssc.sampled_softmax_loss(*arguments, sample_weight=both, **options)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", ["softmax", "negatives", "softcap", "cosface", "label smoothing"])
@pytest.mark.parametrize("targets", [None, 3])
def test_z_loss(backend: str, name: str, targets: int | None) -> None:
    p = make_option_problem(9, 7, 40, 30, targets, z_loss=0.02, **OPTIONS[name]).to(torch.float64)
    expected, _ = option_truth(p)
    loss = p.loss(reduction="none")
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    factors = torch.linspace(-1, 2, loss.numel(), dtype=torch.float64)
    for reduced in ((loss * factors).sum(), p.loss(reduction="sum", sample_weight=factors)):
        for ours, theirs in zip(
            torch.autograd.grad(reduced, p.leaves, retain_graph=True),
            torch.autograd.grad((expected * factors).sum(), p.leaves, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}, {"cosine": True}], ids=str)
def test_exact_z_loss(device: str, options: dict[str, Any]) -> None:
    h, weight, target, _ = problem()
    got = ssc.exact_cross_entropy(h, weight, target, z_loss=0.1, **options)
    z = ssc.logits(h, weight, **options)
    kept = target != -100
    want = F.cross_entropy(z, target) + 0.1 * z.logsumexp(1)[kept].square().mean()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(got, (h, weight)), torch.autograd.grad(want, (h, weight)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_exact_without_excluded_classes_and_details(device: str) -> None:
    h, weight, target, _ = problem()
    exclude = torch.randint(-1, C, (B, 3))
    exclude[exclude == target[:, None]] = -1
    loss, details = ssc.exact_cross_entropy(
        h, weight, target, exclude=exclude, reduction="none", return_details=True
    )
    z = h @ weight.T
    left_out = (torch.arange(C)[None, :, None] == exclude[:, None, :]).any(2)
    z = z.masked_fill(left_out, -torch.inf)
    kept = target != -100
    want = F.cross_entropy(z, target, reduction="none")
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=1e-5)
    lse = torch.where(kept, z.logsumexp(1), 0)
    torch.testing.assert_close(details.lse, lse.detach(), rtol=1e-5, atol=1e-5)
    top = z.argmax(1) == target
    assert torch.equal(details.error, (kept & ~top).float())
    for ours, theirs in zip(
        torch.autograd.grad(loss.sum(), (h, weight)),
        torch.autograd.grad(want.sum(), (h, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_head_has_all_of_it(either: str) -> None:
    h, _, target, class_weight = problem()
    options: dict[str, Any] = {"class_weight": class_weight, "z_loss": 0.01}
    head = ssc.SampledSoftmaxLoss(
        D, C, S, "uniform", replacement=False, inclusion="estimated", **options
    )
    assert "class_weight" not in head.state_dict()
    factors, g = torch.rand(B), torch.Generator().manual_seed(3)
    got, details = head(h, target, sample_weight=factors, return_details=True, generator=g)
    samples = head.sampler.sample(
        target,
        S,
        replacement=False,
        inclusion="estimated",
        generator=torch.Generator().manual_seed(3),
    )
    want = ssc.sampled_softmax_loss(
        h, head.weight, target, samples, bias=head.bias, sample_weight=factors, **options
    )
    torch.testing.assert_close(got, want)
    assert details.lse.shape == target.shape
    head.eval()
    exclude = torch.full((B, 1), int(target[0] + 1) % C)
    got = head(h, target, exclude, sample_weight=factors)
    z = head.logits(h)
    plain = ssc.exact_cross_entropy(
        h, head.weight, target, bias=head.bias, sample_weight=factors, exclude=exclude, **options
    )
    torch.testing.assert_close(got, plain)
    assert head.bias is not None
    assert not torch.allclose(got, F.cross_entropy(z, target))


@pytest.mark.parametrize("name", ["softmax", "softcap", "nce"])
def test_factors_below_the_normal_numbers(backend: str, name: str) -> None:
    """Such a factor, of a loss that hardly counts any more, makes gradients small, not NaN.

    Subnormal numbers have few digits: the bound is 2 % of the largest.
    """
    p = make_option_problem(B, D, C, S, None, **OPTIONS[name]).to(torch.float32)
    loss = p.loss(reduction="none")
    tiny = 1e-40
    got = torch.autograd.grad(loss, p.leaves, torch.full_like(loss, tiny), retain_graph=True)
    want = torch.autograd.grad(loss, p.leaves, torch.ones_like(loss))
    for ours, one in zip(got, want, strict=True):
        largest = float(one.abs().max())
        torch.testing.assert_close(
            ours.double(), tiny * one.double(), rtol=0, atol=0.02 * tiny * largest
        )


@pytest.mark.parametrize("temperature", [1e-6, 1e3])
@pytest.mark.parametrize("name", ["softmax", "nce"])
def test_float16_at_any_temperature(backend: str, name: str, temperature: float) -> None:
    """1 / temperature is a factor of every gradient, by which what is rounded must not overflow."""
    p = make_option_problem(B, D, C, S, None, temperature=temperature, bias=False, **OPTIONS[name])
    with torch.no_grad():
        p.weight.mul_(temperature)  # logits of about 1
    p = p.to(torch.float16)
    double = p.to(torch.float64)
    got = torch.autograd.grad(p.loss(reduction="sum"), p.input)[0].double()
    want = torch.autograd.grad(option_truth(double)[0].sum(), double.input)[0]
    assert float((got - want).norm() / want.norm()) < 2e-3
