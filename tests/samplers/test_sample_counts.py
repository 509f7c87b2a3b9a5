"""log q and log n: against NumPy in float64, against sums over all classes, and in simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sampled_softmax_cuda as ssc
from helpers.samplers import KINDS, key, make_sampler, parts, probabilities, zipf
from sampled_softmax_cuda.samplers import _inclusion

# Ids at which float32 formulas go wrong: log((k + 2) / (k + 1)) is off by 5 % at 1e6, by a factor
# of two at 2^24, and 0 at 1e8.
LARGE_IDS = [0, 1, 2, 3, 10, 1000, 10**6, 2**24, 2**24 + 1, 10**8, 2**31 + 4, 2**40 - 1]

# float32 results of float64 computations: half a unit in the last place, and some for the float64.
RTOL = 1.2e-7


def log_n(q: np.ndarray, num_samples: int, tries: float | None) -> np.ndarray:
    if tries is None:
        return np.log(num_samples * q)
    with np.errstate(divide="ignore"):
        return np.log(-np.expm1(tries * np.log1p(-q)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_classes", [1, 2, 5, 1000, 70_001])
def test_log_prob(backend: str, kind: str, num_classes: int) -> None:
    got = make_sampler(kind, num_classes).log_prob(torch.arange(num_classes))
    expected = np.log(probabilities(kind, num_classes))
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.double().cpu().numpy(), expected, rtol=RTOL, atol=1e-12)
    assert math.isclose(float(got.double().exp().sum()), 1.0, rel_tol=1e-6)


def test_log_uniform_log_prob_of_large_ids(backend: str) -> None:
    for num_classes in (2**40, 2**52 - 1):
        got = ssc.LogUniformSampler(num_classes).log_prob(torch.tensor(LARGE_IDS))
        k = np.array(LARGE_IDS, dtype=np.float64)
        expected = np.log(np.log1p(1 / (k + 1)) / np.log1p(float(num_classes)))
        np.testing.assert_allclose(got.double().cpu().numpy(), expected, rtol=RTOL)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_samples", [1, 7, 400, 999, 1000])
def test_log_expected_count(backend: str, kind: str, num_samples: int) -> None:
    num_classes = 1000
    sampler, q = make_sampler(kind, num_classes), probabilities(kind, num_classes)
    ids = torch.arange(num_classes)
    with_replacement = sampler.log_expected_count(ids, num_samples)
    np.testing.assert_allclose(
        with_replacement.double().cpu().numpy(), log_n(q, num_samples, None), rtol=RTOL, atol=1e-7
    )
    distinct = sampler.log_expected_count(ids, num_samples, replacement=False).double()
    # The defining property: S distinct classes are expected in all.
    assert math.isclose(float(distinct.exp().sum()), num_samples, rel_tol=1e-6)
    assert bool((distinct <= 0).all())
    tries = sampler._solve_tries(num_samples)
    np.testing.assert_allclose(
        distinct.cpu().numpy(), log_n(q, num_samples, tries), rtol=2 * RTOL, atol=1e-7
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("inclusion", ["expected", "observed", "estimated"])
def test_a_sample_comes_with_the_counts_of_its_classes(
    backend: str, kind: str, replacement: bool, inclusion: str
) -> None:
    sampler, q = make_sampler(kind, 300), probabilities(kind, 300)
    target = torch.randint(0, 300, (3, 5))
    torch.manual_seed(5)
    samples = sampler.sample(target, 100, replacement=replacement, inclusion=inclusion)
    assert samples.log_expected_count is not None
    assert samples.target_log_expected_count is not None
    assert samples.target_log_expected_count.shape == (3, 5)
    tries: float | None = None
    if not replacement and inclusion == "observed":
        torch.manual_seed(5)
        same_key = torch.randint(2**63 - 1, (2,))
        tries = float(sampler.draw(same_key, 100, replacement=False)[1])
    elif not replacement and inclusion == "expected":
        tries = sampler._solve_tries(100)
    elif not replacement:
        n = sampler.log_expected_count(
            torch.tensor([0]), 100, replacement=False, inclusion="estimated"
        )
        tries = float((-n.double().exp()).log1p() / math.log1p(-q[0]))
    for ids, got in (
        (samples.ids, samples.log_expected_count),
        (target, samples.target_log_expected_count),
    ):
        np.testing.assert_allclose(
            got.double().cpu().numpy(),
            log_n(q[ids.cpu().numpy()], 100, tries),
            rtol=1e-5,
            atol=1e-5,
        )


def test_ids_to_be_ignored_get_no_correction(backend: str) -> None:
    target = torch.tensor([-100, 5, 1000, 2**62])
    for kind in KINDS:
        for replacement in (True, False):
            got = make_sampler(kind, 1000).sample(target, 9, replacement=replacement)
            assert got.target_log_expected_count is not None
            assert (got.target_log_expected_count == 0).tolist() == [True, False, True, True]


def test_a_class_of_weight_zero_has_the_log_count_of_zero(backend: str) -> None:
    sampler = ssc.WeightedSampler(torch.tensor([1.0, 0.0, 2.0]))
    for counts in (
        sampler.log_prob(torch.tensor([1])),
        sampler.log_expected_count(torch.tensor([1]), 2),
        sampler.log_expected_count(torch.tensor([1]), 1, replacement=False),
        sampler.log_expected_count(torch.tensor([1]), 2, replacement=False),
    ):
        assert float(counts) == -math.inf


def test_every_class_is_certain_when_all_are_drawn(backend: str) -> None:
    for kind in KINDS:
        for num_classes in (1, 2, 50):
            counts = make_sampler(kind, num_classes).log_expected_count(
                torch.arange(num_classes), num_classes, replacement=False
            )
            assert bool((counts == 0).all())


@pytest.mark.parametrize(("num_classes", "num_samples"), [(5000, 200), (10**6, 8192), (10**6, 1)])
def test_log_uniform_tries_against_the_whole_sum(num_classes: int, num_samples: int) -> None:
    q = torch.from_numpy(probabilities("log_uniform", num_classes))
    whole = _inclusion.solve_tries(torch.log1p(-q), num_samples)
    quick = _inclusion.log_uniform_tries(num_classes, num_samples)
    assert math.isclose(quick, whole, rel_tol=1e-9)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.9, 0.999])
def test_log_uniform_tries_solve_their_equation_for_large_shares(share: float) -> None:
    num_classes = 200_000
    num_samples = int(share * num_classes)
    tries = _inclusion.log_uniform_tries(num_classes, num_samples)
    q = probabilities("log_uniform", num_classes)
    found = -np.expm1(tries * np.log1p(-q)).sum()
    assert math.isclose(found, num_samples, rel_tol=1e-9)


def test_tries_of_a_huge_number_of_classes() -> None:
    # No O(C) work: 2^40 classes would take hours. Few draws repeat, so t is a little above S.
    for num_classes in (2**31 + 5, 2**40, 2**52 - 1):
        tries = _inclusion.log_uniform_tries(num_classes, 1000)
        assert 1000 < tries < 3000


def test_skewed_weights_have_a_solution() -> None:
    # Steps of Newton's method across 12 orders of magnitude, and CNTK's example of 150 of 200.
    weights = torch.tensor([1.0, 1.0, 1e-12, 1e-12], dtype=torch.float64)
    tries = ssc.WeightedSampler(weights)._solve_tries(3)
    q = weights / weights.sum()
    assert math.isclose(float(-torch.expm1(tries * torch.log1p(-q)).sum()), 3, rel_tol=1e-9)
    sampler = ssc.WeightedSampler(zipf(200, 3.0))
    assert sampler._solve_tries(150) > 4 * 200  # so it is the race that draws
    ids = sampler.draw(key(0), 150, replacement=False)[0]
    assert len(set(ids.tolist())) == 150


def test_the_sum_does_not_depend_on_threads() -> None:
    x = torch.rand(1_000_003, dtype=torch.float64) ** 9
    before = torch.get_num_threads()
    sums = set()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            sums.add(_inclusion.ordered_sum(x))
    finally:
        torch.set_num_threads(before)
    assert len(sums) == 1
    assert math.isclose(sums.pop(), math.fsum(x.tolist()), rel_tol=1e-13)


def partition_estimates(
    sampler: ssc.Sampler, repetitions: int, inclusion: str | None, replacement: bool = False
) -> np.ndarray:
    """Estimates sum_s exp(z_s) / n_s of a partition function, relative to its value.

    C = 5000, S = 200, logits that follow Zipf's law and vary around it. inclusion=None: n with
    tries = S, a mistake seen elsewhere.
    """
    num_classes, num_samples = 5000, 200
    q = torch.from_numpy(probabilities("log_uniform", num_classes))
    noise = torch.randn(num_classes, generator=torch.Generator().manual_seed(9))
    mass = q * torch.exp(0.5 * noise.double())
    target, generator = torch.tensor([0]), torch.Generator().manual_seed(10)
    estimates = np.empty(repetitions)
    for i in range(repetitions):
        ids, log_n, _ = parts(
            sampler.sample(
                target,
                num_samples,
                replacement=replacement,
                inclusion=inclusion or "expected",
                generator=generator,
            )
        )
        assert log_n is not None
        n = log_n.double().exp()
        if inclusion is None:
            n = -torch.expm1(num_samples * torch.log1p(-q[ids]))
        estimates[i] = (mass[ids] / n).sum()
    return estimates / float(mass.sum())


@pytest.mark.parametrize("inclusion", ["expected", "observed", "estimated"])
def test_the_partition_function_without_replacement(native: None, inclusion: str) -> None:
    estimates = partition_estimates(ssc.LogUniformSampler(5000), 2000, inclusion)
    assert estimates.std() / len(estimates) ** 0.5 < 0.0015
    # The t of ten draws is itself a random number, drawn once.
    assert abs(estimates.mean() - 1) < (0.02 if inclusion == "estimated" else 0.005)


def proposals() -> dict[str, ssc.Sampler]:
    stream = ssc.StreamingSampler(5000)
    stream.update(ssc.LogUniformSampler(5000).draw(key(5), 50_000)[0])
    return {
        "uniform": ssc.UniformSampler(5000),
        "log-uniform": ssc.LogUniformSampler(5000),
        "weighted": ssc.WeightedSampler(zipf(5000, 0.75)),
        "streaming": stream,
        "mixed": ssc.MixedSampler([ssc.UniformSampler(5000), ssc.LogUniformSampler(5000)], [1, 3]),
    }


@pytest.mark.parametrize("name", ["uniform", "log-uniform", "weighted", "streaming", "mixed"])
def test_the_partition_function_with_replacement(native: None, name: str) -> None:
    estimates = partition_estimates(proposals()[name], 800, "expected", replacement=True)
    error = estimates.std() / len(estimates) ** 0.5
    assert abs(estimates.mean() - 1) < 3 * error
    assert error < (0.02 if name == "uniform" else 0.005)


def test_tries_equal_to_the_number_of_samples_would_be_biased(native: None) -> None:
    assert partition_estimates(ssc.LogUniformSampler(5000), 300, None).mean() > 1.2
