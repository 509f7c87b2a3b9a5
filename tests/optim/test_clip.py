"""Clipping of dense and row-sparse gradients together, against torch's on dense ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import sampled_softmax_cuda as ssc
from helpers.row_steps import parameter, row_gradients


def pairs() -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters with a sparse, a coalesced and a dense gradient, and one without; twins with dense
    ones."""
    ours = [parameter((9, 3)) for _ in range(4)]
    theirs = [parameter((9, 3)) for _ in range(4)]
    gradients = [*row_gradients((9, 3), 2), torch.randn(9, 3, dtype=torch.float64)]
    gradients[1] = gradients[1].coalesce()
    for p, q, gradient in zip(ours, theirs, gradients, strict=False):
        p.grad = gradient.clone()
        q.grad = gradient.to_dense() if gradient.is_sparse else gradient.clone()
    return ours, theirs


def same_gradients(ours: list[nn.Parameter], theirs: list[nn.Parameter]) -> None:
    for p, q in zip(ours, theirs, strict=True):
        if q.grad is None:
            assert p.grad is None
            continue
        assert p.grad is not None
        torch.testing.assert_close(p.grad.to_dense(), q.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("max_norm", [0.1, 1e3])
@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, math.inf])
def test_norm(device: str, norm_type: float, max_norm: float) -> None:
    ours, theirs = pairs()
    norm = ssc.optim.clip_grad_norm_(iter(ours), max_norm, norm_type)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    torch.testing.assert_close(norm, expected, rtol=1e-12, atol=1e-12)
    same_gradients(ours, theirs)


def test_values(device: str) -> None:
    ours, theirs = pairs()
    ssc.optim.clip_grad_value_(ours, 0.3)
    torch.nn.utils.clip_grad_value_(theirs, 0.3)
    same_gradients(ours, theirs)


def test_one_parameter_and_none(device: str) -> None:
    p = parameter((4, 2))
    assert float(ssc.optim.clip_grad_norm_(p, 1.0)) == 0.0
    p.grad = torch.ones(4, 2, dtype=torch.float64)
    ssc.optim.clip_grad_value_(p, 0.5)
    assert (p.grad == 0.5).all()


def test_rows_that_stay_apart_on_a_gpu(native: str) -> None:
    """The merging that waits for no device, by the rules of one."""
    from sampled_softmax_cuda.optim.clip import merge_rows

    gradient = row_gradients((5, 3), 1, rows=20)[0]
    merged = merge_rows(gradient)
    assert merged._values().shape == (20, 3)
    torch.testing.assert_close(merged.to_dense(), gradient.to_dense(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        merged._values().norm(), gradient.to_dense().norm(), rtol=1e-12, atol=1e-12
    )


def test_a_norm_that_is_not_finite(device: str) -> None:
    p = parameter((4, 2))
    p.grad = torch.full((4, 2), math.inf, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="non-finite"):
        ssc.optim.clip_grad_norm_(p, 1.0, error_if_nonfinite=True)


def test_bounds_that_would_turn_signs(device: str) -> None:
    p = parameter((4, 2))
    p.grad = torch.ones_like(p)
    for bad in (-1.0, math.nan):
        with pytest.raises(ValueError, match=r"clip_grad_norm_: max_norm must be at least 0"):
            ssc.optim.clip_grad_norm_(p, bad)
        with pytest.raises(ValueError, match=r"clip_grad_norm_: norm_type must be above 0"):
            ssc.optim.clip_grad_norm_(p, 1.0, bad)
        with pytest.raises(ValueError, match=r"clip_grad_value_: clip_value must be at least 0"):
            ssc.optim.clip_grad_value_(p, bad)
    assert bool((p.grad == 1.0).all())
    ssc.optim.clip_grad_norm_(p, 0.0)
    assert not p.grad.any()


def test_a_gradient_without_rows(device: str) -> None:
    p = parameter((4, 2))
    p.grad = row_gradients((4, 2), 1, rows=0)[0]
    for norm_type in (2.0, math.inf):
        assert float(ssc.optim.clip_grad_norm_(p, 1.0, norm_type)) == 0.0
    ssc.optim.clip_grad_value_(p, 1.0)
