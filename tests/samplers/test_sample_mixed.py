"""MixedSampler: the split of the samples, and the exact density of the mixture."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

import sampled_softmax_cuda as ssc
from helpers.samplers import assert_chi_square, parts, probabilities, zipf
from sampled_softmax_cuda.samplers.base import UNLIMITED
from sampled_softmax_cuda.samplers.mixed import split_samples


@pytest.mark.parametrize(
    ("num_samples", "proportions", "most", "shares"),
    [
        (10, [1, 1], [UNLIMITED] * 2, [5, 5]),
        (10, [3, 1], [UNLIMITED] * 2, [8, 2]),  # 7.5 and 2.5: the first of equal remainders
        (10, [1, 1, 1], [UNLIMITED] * 3, [4, 3, 3]),
        (1, [1, 2], [UNLIMITED] * 2, [0, 1]),
        (10, [1, 1], [3, UNLIMITED], [3, 7]),
        (12, [2, 1, 1], [2, 3, UNLIMITED], [2, 3, 7]),  # filled one after the other
        (12, [2, 1, 1], [2, 3, 4], [2, 3, 4]),  # nothing left to fill
        (6, [1, 1], [0, UNLIMITED], [0, 6]),
    ],
)
def test_split(num_samples: int, proportions: list[float], most: list[int], shares: Any) -> None:
    assert split_samples(num_samples, proportions, most) == shares


def mixture(num_classes: int) -> tuple[ssc.MixedSampler, list[np.ndarray]]:
    weights = torch.arange(num_classes, dtype=torch.float64) ** 2  # class 0 never
    sampler = ssc.MixedSampler(
        [
            ssc.UniformSampler(num_classes),
            ssc.LogUniformSampler(num_classes),
            ssc.WeightedSampler(weights),
        ],
        proportions=[1, 2, 1],
    )
    parts = [probabilities("uniform", num_classes), probabilities("log_uniform", num_classes)]
    return sampler, [*parts, (weights / weights.sum()).cpu().numpy()]


def test_the_exact_density_for_every_sample(backend: str) -> None:
    sampler, q = mixture(40)
    target = torch.arange(40).view(4, 10)
    ids, log_n, target_log_n = parts(sampler.sample(target, 100))
    n = 25 * q[0] + 50 * q[1] + 25 * q[2]
    assert ids.shape == (100,)
    np.testing.assert_allclose(log_n.double().exp().cpu().numpy(), n[ids.cpu().numpy()], rtol=1e-6)
    np.testing.assert_allclose(
        target_log_n.double().exp().cpu().numpy(), n[target.cpu().numpy()], rtol=1e-6
    )
    got = sampler.log_expected_count(target, 100).double().exp().cpu().numpy()
    np.testing.assert_allclose(got, n[target.cpu().numpy()], rtol=1e-6)
    log_prob = sampler.log_prob(torch.arange(40)).double().exp().cpu().numpy()
    np.testing.assert_allclose(log_prob, n / 100, rtol=1e-6)


def test_samples_follow_the_mixture() -> None:
    sampler, q = mixture(12)
    ids = sampler.sample(torch.tensor([0]), 200_000).ids
    # Not multinomial draws, since the shares are fixed, but only less scattered for it.
    assert_chi_square(
        torch.bincount(ids, minlength=12).tolist(), 0.25 * q[0] + 0.5 * q[1] + 0.25 * q[2]
    )
    assert_chi_square(torch.bincount(ids[:50_000], minlength=12).tolist(), q[0])
    assert_chi_square(torch.bincount(ids[50_000:150_000], minlength=12).tolist(), q[1])


@pytest.mark.parametrize("replacement", [True, False])
def test_the_partition_function_over_all_draws(replacement: bool) -> None:
    # Two draws of one component, two of the other, over four classes: every outcome, exactly.
    # Distinct draws: n by "expected" solves only the sum, so their exact frequencies take its part.
    q = [np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.1, 0.1, 0.1, 0.7])]
    z = np.exp([0.5, -0.3, 0.1, 1.0])
    sampler = ssc.MixedSampler([ssc.WeightedSampler(torch.from_numpy(p)) for p in q])
    n = sampler.log_expected_count(torch.arange(4), 4, replacement=replacement).double().exp()
    mean, count = 0.0, np.zeros(4)
    for outcome in itertools.product(range(4), repeat=4):
        probability = 1.0
        for p, (a, b) in zip(q, (outcome[:2], outcome[2:]), strict=True):
            second = p[b] if replacement else (0.0 if a == b else p[b] / (1 - p[a]))
            probability *= p[a] * second
        mean += probability * sum(z[k] / float(n[k]) for k in outcome)
        for k in outcome:
            count[k] += probability
    if replacement:
        np.testing.assert_allclose(n.numpy(), count, rtol=1e-6)
        assert math.isclose(mean, z.sum(), rel_tol=1e-6)
    else:
        assert math.isclose(float(n.sum()), 4, rel_tol=1e-6)
        np.testing.assert_allclose(n.numpy(), count, rtol=0.06)
        assert math.isclose(mean, z.sum(), rel_tol=0.02)


@pytest.mark.parametrize("inclusion", ["expected", "observed", "estimated"])
def test_distinct_draws_of_the_parts_add_up(either: str, inclusion: str) -> None:
    q = [probabilities("log_uniform", 30), zipf(30).flip(0).numpy()]
    q[1] /= q[1].sum()
    components = [ssc.LogUniformSampler(30), ssc.WeightedSampler(torch.from_numpy(q[1]))]
    sampler = ssc.MixedSampler(components, [2, 1])
    target = torch.arange(30)
    torch.manual_seed(6)
    ids, log_n, target_log_n = parts(
        sampler.sample(target, 15, replacement=False, inclusion=inclusion)
    )
    assert len(set(ids[:10].tolist())) == 10
    assert len(set(ids[10:].tolist())) == 5
    n = np.zeros(30)
    torch.manual_seed(6)
    for part, share, p in zip(components, (10, 5), q, strict=True):
        single = part.sample(target, share, replacement=False, inclusion=inclusion)
        assert single.target_log_expected_count is not None
        tries = np.log1p(-float(single.target_log_expected_count[3].double().exp()))
        n += -np.expm1(tries / np.log1p(-p[3]) * np.log1p(-p))
    np.testing.assert_allclose(target_log_n.double().exp().numpy(), n, rtol=1e-5)
    np.testing.assert_allclose(log_n.double().exp().numpy(), n[ids.numpy()], rtol=1e-5)


def test_a_small_batch_leaves_its_share_to_the_others(either: str) -> None:
    frequencies = ssc.WeightedSampler(zipf(20))
    sampler = ssc.MixedSampler([ssc.InBatchSampler(frequencies), ssc.UniformSampler(20)])
    target = torch.tensor([4, 4, -100, 7])
    ids, log_n, target_log_n = parts(sampler.sample(target, 12))
    assert ids[:4].tolist() == [4, 4, 7, 7]
    assert (log_n == torch.inf).tolist() == [False, False, True] + [False] * 9
    q = (zipf(20) / zipf(20).sum()).numpy()
    n = 2 * q + 8 / 20  # two other rows, eight uniform draws
    counted = log_n < torch.inf
    np.testing.assert_allclose(
        log_n[counted].double().exp().numpy(), n[ids[counted].numpy()], rtol=1e-6
    )
    assert target_log_n[2] == 0
    np.testing.assert_allclose(target_log_n[[0, 1, 3]].exp().numpy(), n[[4, 4, 7]], rtol=1e-6)


def test_a_uniform_sample_counts_its_copies_in_the_batch(either: str) -> None:
    sampler = ssc.MixedSampler([ssc.InBatchSampler(), ssc.UniformSampler(3)], [1, 2])
    ids, log_n, _ = parts(sampler.sample(torch.tensor([1, 1, 0]), 9))
    n = torch.tensor([1.0, 2.0, 0.0]) + 6 / 3
    torch.testing.assert_close(log_n.exp(), n[ids])


def test_a_mixture_of_mixtures() -> None:
    a, b, c = (ssc.WeightedSampler(zipf(9, p)) for p in (0.0, 1.0, 3.0))
    flat = ssc.MixedSampler([a, b, c], [2, 1, 1])
    nested = ssc.MixedSampler([a, ssc.MixedSampler([b, c])])
    ids = torch.arange(9)
    torch.testing.assert_close(nested.log_prob(ids), flat.log_prob(ids))
    torch.testing.assert_close(
        nested.sample(ids, 16).target_log_expected_count,
        flat.sample(ids, 16).target_log_expected_count,
    )


def test_all_classes_and_no_more_without_replacement() -> None:
    sampler = ssc.MixedSampler([ssc.UniformSampler(4), ssc.WeightedSampler(zipf(4))], [5, 1])
    ids, log_n, _ = parts(sampler.sample(torch.tensor([0]), 8, replacement=False))
    assert torch.bincount(ids).tolist() == [2, 2, 2, 2]
    torch.testing.assert_close(log_n.exp(), torch.full((8,), 2.0))
    with pytest.raises(ValueError, match="num_samples must be at most 8"):
        sampler.sample(torch.tensor([0]), 9, replacement=False)


def test_the_generator_decides(either: str) -> None:
    sampler, _ = mixture(1000)
    draws = [
        sampler.sample(torch.tensor([1]), 30, generator=torch.Generator().manual_seed(s)).ids
        for s in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert len(set(draws[0].tolist())) > 10  # components do not share a key


def test_bad_arguments() -> None:
    uniform, target = ssc.UniformSampler(5), torch.tensor([1])
    cases: list[tuple[type[Exception], str, Any]] = [
        (ValueError, "at least one Sampler, got none", lambda: ssc.MixedSampler([])),
        (TypeError, r"samplers\[1\] must be a Sampler", lambda: ssc.MixedSampler([uniform, 3])),
        (
            ValueError,
            "the same num_classes, got 5, 6",
            lambda: ssc.MixedSampler([uniform, ssc.UniformSampler(6)]),
        ),
        (
            ValueError,
            "must be 1 numbers, one for each sampler, got 2",
            lambda: ssc.MixedSampler([uniform], [1, 2]),
        ),
        (
            ValueError,
            "positive and finite, got 0",
            lambda: ssc.MixedSampler([uniform, uniform], [1, 0]),
        ),
        (
            ValueError,
            "per_row=True is not possible",
            lambda: ssc.MixedSampler([uniform]).sample(target, 1, per_row=True),
        ),
        (
            ValueError,
            "InBatchSampler.log_prob needs log_q=",
            lambda: ssc.MixedSampler([uniform, ssc.InBatchSampler()]).log_prob(target),
        ),
        (
            IndexError,
            r"must be in \[0, num_classes=5\), got 9",
            lambda: ssc.MixedSampler([uniform]).log_prob(torch.tensor([9])),
        ),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()
