"""Hits that are kept, and far above the target's own logit: by margins, or by other log counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sampled_softmax_cuda as ssc
from helpers.problem import Problem
from helpers.truth import option_truth

# exp of the smallest overflows in float32, that of the largest in float64.
GAPS = [30.0, 89.0, 95.0, 200.0, 800.0]
# The target's own class alone, and with another one as likely and one that is not.
IDS = {"alone": [2], "among others": [0, 2, 4, 1]}


def far_target(gap: float, ids: list[int], dtype: torch.dtype) -> Problem:
    """A row whose class 2 has a logit near 0, and class 0 one of -gap / 2."""
    weight = torch.tensor([[-gap / 2], [-gap], [0.25], [0.0], [-2 * gap]], dtype=dtype)
    samples = ssc.Samples(torch.tensor(ids), torch.zeros(len(ids)), torch.zeros(1))
    input = torch.ones(1, 1, dtype=dtype, requires_grad=True)
    return Problem(input, weight.requires_grad_(), None, torch.tensor([2]), samples)


def check(p: Problem, **options: Any) -> None:
    options["remove_accidental_hits"] = False
    loss = p.loss(**options)
    want = option_truth(p, **options)[0].sum()
    rows = p.loss(**options, reduction="none").sum()
    for ours in (loss, rows):
        torch.testing.assert_close(ours.double(), want, rtol=1e-5, atol=0)
        for a, b in zip(
            torch.autograd.grad(ours, p.leaves, retain_graph=True),
            torch.autograd.grad(want, p.leaves, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("gap", GAPS)
def test_a_margin(backend: str, gap: float, ids: str, dtype: torch.dtype) -> None:
    for more in ({}, {"label_smoothing": 0.1}, {"reweighted": True}):
        check(far_target(gap, IDS[ids], dtype), objective=ssc.Softmax(margin=gap, **more))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("gap", GAPS)
def test_log_counts(backend: str, gap: float, ids: str, dtype: torch.dtype) -> None:
    """The plain softmax, whose targets differ from their own class among the samples in log n."""
    p = far_target(gap, IDS[ids], dtype)
    count = torch.zeros(len(IDS[ids]))
    for of_samples, of_target in ((0.0, gap), (-gap, 0.0)):
        p.samples = ssc.Samples(p.samples.ids, count + of_samples, torch.tensor([of_target]))
        check(p)
