"""t, the draws that S distinct classes take, over the whole range of weights, to 400 digits."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf
from torch import Tensor

import sampled_softmax_cuda as ssc
from helpers.backends import INSTRUCTION_SETS
from sampled_softmax_cuda.samplers import _inclusion

GIANT = [1.0] + [1e-20] * 9  # a q that rounds to 1


def exact_probabilities(weights: Sequence[float]) -> list[Any]:
    total = mp.fsum(mpf(w) for w in weights)
    return [mpf(w) / total for w in weights]


@functools.cache
def exact_tries(weights: tuple[float, ...], num_samples: int) -> Any:
    """The solution of sum 1 - (1 - q)^t = S by bisection of log t."""
    log_missed = [mp.log1p(-q) for q in exact_probabilities([w for w in weights if w > 0])]
    low, high = mp.log(mpf(num_samples) / 2), mp.log(mpf(10) ** 320)
    for _ in range(80):
        middle = (low + high) / 2
        t = mp.exp(middle)
        if mp.fsum(-mp.expm1(t * x) for x in log_missed) < num_samples:
            low = middle
        else:
            high = middle
    return mp.exp(low)


def exact_log_counts(weights: Sequence[float], num_samples: int, replacement: bool) -> np.ndarray:
    q = exact_probabilities(weights)
    if replacement:
        return np.array([float(mp.log(num_samples * x)) if x > 0 else -math.inf for x in q])
    if num_samples == sum(w > 0 for w in weights):
        return np.array([0.0 if x > 0 else -math.inf for x in q])
    t = exact_tries(tuple(weights), num_samples)
    return np.array([float(mp.log(-mp.expm1(t * mp.log1p(-x)))) if x > 0 else -math.inf for x in q])


CASES: dict[str, list[float]] = {
    "a giant": GIANT,
    "nearly a giant": [1.0] + [1e-17] * 4 + [0.0],
    "a plateau": [0.5, 0.5, 1e-20],  # the sum stays at 2 while t grows by orders of magnitude
    "two plateaus": [1.0, 1.0, 1.0, 1e-30, 1e-200],
    "a ladder": [10.0 ** (-20 * k) for k in range(15)],
    "groups": [3.0, 0.0, 2.0, 1.0, 1e-5, 1e-5, 1e-100, 1e-300, 1e-299],
    "equal": [1.0] * 7,
    "one class": [3.0, 0.0],
    "denormals": [1e-310, 1e-312, 0.0, 1e-320],
    "near the largest": [1.7e308, 1.7e308, 1e290, 1e200],
}


@pytest.fixture(autouse=True)
def _digits() -> Any:
    with mp.workdps(400):
        yield


@pytest.mark.parametrize("case", CASES)
def test_tries_of_every_number_of_samples(case: str) -> None:
    weights = CASES[case]
    sampler = ssc.WeightedSampler(torch.tensor(weights, dtype=torch.float64))
    assert sampler.num_drawable == sum(w > 0 for w in weights)
    for num_samples in range(1, sampler.num_drawable):
        t = sampler._solve_tries(num_samples)
        assert abs(float(mpf(t) / exact_tries(tuple(weights), num_samples) - 1)) < 1e-11
    assert sampler._solve_tries(sampler.num_drawable) == math.inf


@pytest.mark.parametrize("case", CASES)
def test_log_counts_of_every_number_of_samples(backend: str, case: str) -> None:
    """log n of every kernel; the ids distinct and none of weight 0, shared and per row."""
    weights = CASES[case]
    sampler = ssc.WeightedSampler(torch.tensor(weights, dtype=torch.float64))
    drawable = [k for k, w in enumerate(weights) if w > 0]
    ids = torch.arange(len(weights))
    for num_samples in range(1, len(drawable) + 1):
        for replacement in (False, True):
            truth = exact_log_counts(weights, num_samples, replacement)
            got = sampler.log_expected_count(ids, num_samples, replacement=replacement)
            close(got, truth)
            for per_row in (False, True):
                drawn = sampler.sample(ids, num_samples, replacement=replacement, per_row=per_row)
                assert set(drawn.ids.flatten().tolist()) <= set(drawable)
                for row in drawn.ids.view(-1, num_samples):
                    assert replacement or row.unique().numel() == num_samples
                close(drawn.log_expected_count, truth[drawn.ids.cpu().numpy()])
                close(drawn.target_log_expected_count, corrections(truth))


def corrections(truth: np.ndarray) -> np.ndarray:
    """Log counts as they are subtracted: a class that is never drawn is not corrected."""
    return np.where(np.isneginf(truth), 0.0, truth)


def close(got: Tensor | None, truth: np.ndarray) -> None:
    assert got is not None
    np.testing.assert_allclose(got.double().cpu().numpy(), truth, rtol=3e-7, atol=3e-7)


def test_small_proposals_without_weights() -> None:
    for num_classes in (1, 2, 3, 9):
        k = np.arange(num_classes)
        for sampler, weights in (
            (ssc.UniformSampler(num_classes), np.ones(num_classes)),
            (ssc.LogUniformSampler(num_classes), np.log1p(1 / (k + 1.0))),
        ):
            for num_samples in range(1, num_classes):
                t = sampler._solve_tries(num_samples)
                truth = exact_tries(tuple(weights.tolist()), num_samples)
                assert abs(float(mpf(t) / truth - 1)) < 1e-11
            assert sampler._solve_tries(num_classes) == math.inf


@pytest.mark.parametrize("missed", [1, 2, 1000])
def test_nearly_all_of_many_equal_classes(missed: int) -> None:
    num_classes = 10**9
    truth = mp.log(mpf(missed) / num_classes) / mp.log1p(-mpf(1) / num_classes)
    got = _inclusion.uniform_tries(num_classes, num_classes - missed)
    assert abs(float(mpf(got) / truth - 1)) < 1e-13


@pytest.mark.parametrize("inclusion", ["observed", "estimated"])
@pytest.mark.parametrize("per_row", [False, True])
def test_counts_of_the_race_s_own_draws(backend: str, inclusion: str, per_row: bool) -> None:
    """Two classes have nearly everything; a third one takes about 1e9 draws of its own."""
    sampler = ssc.WeightedSampler(torch.tensor([1.0, 2.0, 3e-9, 1e-12], dtype=torch.float64))
    options: dict[str, Any] = {"per_row": True, "num_true": 4} if per_row else {}
    drawn = sampler.sample(
        torch.arange(4)[None], 3, replacement=False, inclusion=inclusion, **options
    )
    q = np.array(exact_probabilities([1.0, 2.0, 3e-9, 1e-12]), dtype=float)
    n = drawn.target_log_expected_count.double().exp().cpu().numpy()[0]
    t = np.log1p(-n[3]) / np.log1p(-q[3])  # all classes by the same t, of this order
    assert 1e7 < t < 4e10
    np.testing.assert_allclose(n[:3], -np.expm1(t * np.log1p(-q[:3])), rtol=1e-4)


@pytest.mark.parametrize("inclusion", ["observed", "estimated"])
@pytest.mark.parametrize("num_samples", [2, 10])
def test_more_draws_than_can_be_counted_are_refused(inclusion: str, num_samples: int) -> None:
    sampler = ssc.WeightedSampler(torch.tensor(GIANT, dtype=torch.float64))
    options: dict[str, Any] = {"replacement": False, "inclusion": inclusion}
    for per_row in (False, True):
        with pytest.raises(ValueError, match=r"take about 1e\+\d\d draws.*inclusion='expected'"):
            sampler.sample(torch.tensor([0]), num_samples, per_row=per_row, **options)
    assert sampler.sample(torch.tensor([0]), 1, **options).ids.shape == (1,)


def test_weights_too_far_apart_are_refused(either: str) -> None:
    """Their race would end beyond float64, where a class of weight 0 comes as soon as theirs."""
    sampler = ssc.WeightedSampler(torch.tensor([0.0, 0.0, 1.0] + [1e-308] * 40).double())
    sampler.update(torch.tensor([0.0, 0.0, 1.0] + [1e-308] * 40, dtype=torch.float64))
    for num_samples in (40, 41):
        with pytest.raises(ValueError, match=r"WeightedSampler: \d+ distinct.*make them 0"):
            sampler.sample(torch.tensor([3]), num_samples, replacement=False)
    assert sampler.sample(torch.tensor([3]), 1, replacement=False).ids.tolist() == [2]


@pytest.mark.parametrize("replacement", [True, False])
def test_an_exclusion_that_leaves_no_digit_is_refused(either: str, replacement: bool) -> None:
    """1 - q of the excluded class has no digits, so neither have the counts of the others."""
    sampler = ssc.WeightedSampler(torch.tensor([1.0, 1e-13, 1e-13], dtype=torch.float64))
    target, exclude = torch.tensor([1]), torch.tensor([[0]])
    with pytest.raises(ValueError, match="exclude leaves row 0 less than"):
        sampler.sample(target, 1, per_row=True, replacement=replacement, exclude=exclude)


def test_an_exclusion_that_leaves_no_digit_gives_no_number_on_a_gpu(simt: str) -> None:
    sampler = ssc.WeightedSampler(torch.tensor([1.0, 1e-13, 1e-13], dtype=torch.float64))
    exclude = torch.tensor([[0], [1]])
    for replacement in (True, False):
        drawn = sampler.sample(
            torch.tensor([2, 2]), 1, per_row=True, replacement=replacement, exclude=exclude
        )
        assert drawn.ids[0].tolist() == [-1]
        assert drawn.target_log_expected_count.isnan().tolist() == [True, False]


WEIGHTS = st.lists(
    st.one_of(
        st.just(0.0),
        st.floats(-290, 0).map(lambda x: 10.0**x),
        st.floats(-20, 0).map(lambda x: 10.0**x),
        st.sampled_from([1.0, 1e-5, 1e-16, 1e-17, 1e-100]),
    ),
    min_size=1,
    max_size=12,
).filter(lambda weights: max(weights) > 1e-10)


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(weights=WEIGHTS, choice=st.floats(0, 1), seed=st.integers(0, 2**31))
@pytest.mark.parametrize("backend", ["reference", *INSTRUCTION_SETS], indirect=True)
def test_any_weights(backend: str, weights: list[float], choice: float, seed: int) -> None:
    """Shared and per row, with and without replacement, all three kinds of inclusion."""
    drawable = [k for k, w in enumerate(weights) if w > 0]
    num_samples = 1 + round(choice * (len(drawable) - 1))
    torch.manual_seed(seed)
    with mp.workdps(400):
        sampler = ssc.WeightedSampler(torch.tensor(weights, dtype=torch.float64))
        ids = torch.arange(len(weights))
        for replacement in (True, False):
            truth = exact_log_counts(weights, num_samples, replacement)
            for inclusion in ("expected", "observed", "estimated"):
                for per_row in (False, True):
                    try:
                        drawn = sampler.sample(
                            ids,
                            num_samples,
                            replacement=replacement,
                            inclusion=inclusion,
                            per_row=per_row,
                        )
                    except ValueError as error:
                        if replacement or "more than can be counted for" not in str(error):
                            raise
                        continue
                    assert set(drawn.ids.flatten().tolist()) <= set(drawable)
                    for row in drawn.ids.view(-1, num_samples):
                        assert replacement or row.unique().numel() == num_samples
                    if replacement or inclusion == "expected":
                        close(drawn.log_expected_count, truth[drawn.ids.numpy()])
                        close(drawn.target_log_expected_count, corrections(truth))
                    else:
                        assert not drawn.log_expected_count.isnan().any()
                        assert bool((drawn.log_expected_count <= 0).all())
