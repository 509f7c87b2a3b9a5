"""WeightedSampler: its probabilities from weights of any range, from counts and from targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import sampled_softmax_cuda as ssc
from helpers.samplers import zipf

TINY = float(torch.finfo(torch.float64).tiny)


def probabilities(sampler: ssc.WeightedSampler) -> np.ndarray:
    return sampler.probability_bits.view(torch.float64).numpy()


@pytest.mark.parametrize("power", [1.0, 0.75, 0.0, -1.0, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 2.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64])
def test_probabilities_of_counts(
    either: str, power: float, smoothing: float, dtype: torch.dtype
) -> None:
    counts = torch.tensor([5, 0, 128, 1, 0, 17]).to(dtype)
    w = counts.double().numpy() + smoothing
    expected = np.power(w, power, where=w > 0, out=np.zeros_like(w))
    expected /= expected.sum()
    sampler = ssc.WeightedSampler.from_counts(counts, power=power, smoothing=smoothing)
    np.testing.assert_allclose(probabilities(sampler), expected, rtol=1e-14)
    assert sampler.num_drawable == (expected > 0).sum()
    assert counts.tolist() == [5, 0, 128, 1, 0, 17]  # the caller's own
    other = ssc.WeightedSampler(torch.ones(6), power, smoothing)
    other.update(counts)
    for name, tensor in sampler.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


@pytest.mark.parametrize(
    ("weights", "power"),
    [
        (torch.tensor([1e-300, 1.0, 0.0, 1e300], dtype=torch.float64), 1.0),
        (torch.tensor([1e-200, 1.0, 0.0], dtype=torch.float64), 2.0),
        (torch.tensor([1e-300, 0.0, 1e300], dtype=torch.float64), -1.0),
        (torch.tensor([1.7e308] * 3 + [0.0], dtype=torch.float64), 1.0),  # their sum overflows
        (torch.tensor([5e-324, 0.0, 5e-324], dtype=torch.float64), 1.0),
        (torch.tensor([1e-45, 0.0, 3e38]), 1.0),  # the whole range of float32
        (torch.tensor([1e-45, 0.0, 3e38]), 8.0),
    ],
    ids=str,
)
def test_no_positive_weight_becomes_zero(either: str, weights: torch.Tensor, power: float) -> None:
    sampler = ssc.WeightedSampler(weights, power)
    q = probabilities(sampler)
    assert ((q > 0) == (weights > 0).numpy()).all()
    assert (q[q > 0] >= TINY).all()
    assert abs(q.sum() - 1) < 1e-15
    log_w = np.log(weights.double().numpy()[q > 0]) * power
    expected = np.exp(log_w - np.logaddexp.reduce(log_w))
    np.testing.assert_allclose(q[q > 0], np.maximum(expected, TINY), rtol=1e-12)
    assert set(sampler.draw(torch.tensor([1, 2]), 50)[0].tolist()) <= set(
        np.flatnonzero(q).tolist()
    )


def test_weights_of_targets(either: str) -> None:
    target = torch.tensor([[3, 1, 3], [-100, 4, 9], [0, -5, 3]])
    sampler = ssc.WeightedSampler.from_targets(target, 5, power=0.5, smoothing=1.0, ignore_index=4)
    w = np.sqrt([2, 2, 1, 4, 1])
    np.testing.assert_allclose(probabilities(sampler), w / w.sum(), rtol=1e-14)


def test_the_number_of_threads_changes_nothing(native: None) -> None:
    weights = zipf(200_003, 0.7).flip(0)
    before = torch.get_num_threads()
    states = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            states.append(ssc.WeightedSampler(weights).state_dict())
    finally:
        torch.set_num_threads(before)
    for state in states[1:]:
        for name, tensor in state.items():
            assert torch.equal(tensor, states[0][name])


def test_bad_arguments() -> None:
    make = ssc.WeightedSampler
    cases: list[tuple[type[Exception], str, Any]] = [
        (
            ValueError,
            "smoothing must be a number >= 0, got -1",
            lambda: make.from_counts(torch.ones(3), smoothing=-1),
        ),
        (ValueError, "not negative, got -1.0 at", lambda: make.from_counts(torch.tensor([3, -1]))),
        (
            TypeError,
            "from_targets: target must be int64, got torch.float32",
            lambda: make.from_targets(torch.ones(3), 5),
        ),
        (
            ValueError,
            r"from_targets: num_classes must be in .* got 0",
            lambda: make.from_targets(torch.tensor([1]), 0),
        ),
        (
            ValueError,
            "must have a positive sum, got 4 zeros",
            lambda: make.from_targets(torch.tensor([-1]), 4, smoothing=0.0),
        ),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()
