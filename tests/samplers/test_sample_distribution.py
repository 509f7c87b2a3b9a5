"""How often classes are drawn: chi-square against exact probabilities. Keys are fixed.

On one backend, the compiled one if there is one: test_sample_ids.py shows that all draw the same.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sampled_softmax_cuda as ssc
from helpers.samplers import (
    KINDS,
    assert_chi_square,
    key,
    make_sampler,
    ordered_probabilities,
    probabilities,
    zipf,
)
from sampled_softmax_cuda.ops import sample as ops
from sampled_softmax_cuda.ops.library import has_native
from sampled_softmax_cuda.proposals import Method


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_classes", [2, 3, 10, 257, 5000])
def test_draws_with_replacement(kind: str, num_classes: int) -> None:
    ids = make_sampler(kind, num_classes).draw(key(num_classes), 200_000)[0]
    assert_chi_square(
        torch.bincount(ids, minlength=num_classes).tolist(), probabilities(kind, num_classes)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_neighbouring_draws_are_independent(kind: str) -> None:
    # Draws 2i and 2i + 1 come from one counter, 2i + 1 and 2i + 2 from neighbours.
    ids = make_sampler(kind, 6).draw(key(2), 100_001)[0]
    q = probabilities(kind, 6)
    for first in (0, 1):
        pairs = ids[first : first + 100_000].view(-1, 2)
        counts = torch.bincount(pairs[:, 0] * 6 + pairs[:, 1], minlength=36)
        assert_chi_square(counts.tolist(), np.outer(q, q).ravel())


@pytest.mark.parametrize("kind", KINDS)
def test_different_keys_draw_independently(kind: str) -> None:
    q = probabilities(kind, 6)
    sampler = make_sampler(kind, 6)
    for a, b in [(key(1), key(2)), (key(1), key(1, 2**40)), (key(0, 5), key(5, 0))]:
        x, y = sampler.draw(a, 50_000)[0], sampler.draw(b, 50_000)[0]
        assert_chi_square(torch.bincount(x * 6 + y, minlength=36).tolist(), np.outer(q, q).ravel())


@pytest.mark.parametrize("num_classes", [10**6, 2**24 + 3, 2**31 + 5, 2**40])
def test_log_uniform_over_octaves(num_classes: int) -> None:
    # Octave a holds the classes with 2^a <= k + 1 < 2^(a+1), that is 1 / log2(C + 1) of the draws.
    ids = ssc.LogUniformSampler(num_classes).draw(key(8), 200_000)[0]
    octave = torch.frexp((ids + 1).double())[1].long() - 1
    edges = np.minimum(2.0 ** np.arange(0, num_classes.bit_length() + 1), num_classes + 1)
    probability = np.diff(np.log(edges)) / np.log(num_classes + 1)
    assert_chi_square(torch.bincount(octave, minlength=len(probability)).tolist(), probability)
    # And inside the highest whole octave the draws have density 1 / (k + 1).
    top = num_classes.bit_length() - 2
    inside = (ids[octave == top] + 1).double() / 2.0**top
    quantile = torch.log2(inside).mul(16).long().clamp(0, 15)
    assert_chi_square(torch.bincount(quantile, minlength=16).tolist(), [1 / 16] * 16)


@pytest.mark.parametrize("num_classes", [2**24 + 3, 2**31 + 5, 2**32, 2**40, 2**62 + 1])
def test_uniform_over_many_classes(num_classes: int) -> None:
    ids = ssc.UniformSampler(num_classes).draw(key(6), 200_000)[0]
    cells = 64
    cell = (ids.double() / num_classes * cells).long().clamp(max=cells - 1)
    assert_chi_square(torch.bincount(cell, minlength=cells).tolist(), [1 / cells] * cells)
    assert_chi_square(torch.bincount(ids & 7, minlength=8).tolist(), [1 / 8] * 8)


def test_a_class_of_weight_zero_is_never_drawn() -> None:
    weights = torch.rand(1000)
    weights[::3] = 0
    sampler = ssc.WeightedSampler(weights)
    for method in Method:
        samples = 100_000 if method == Method.WITH_REPLACEMENT else 600
        ids = ops.sample(
            sampler._proposal(), key(1), torch.empty(0, dtype=torch.int64), samples, method, None
        )[0]
        assert bool((weights[ids] > 0).all())


def test_power_flattens_the_weights() -> None:
    for power in (0.75, 0.0, -1.0, 2.0):
        ids = ssc.WeightedSampler(zipf(50), power).draw(key(3), 100_000)[0]
        expected = zipf(50).numpy() ** power
        assert_chi_square(torch.bincount(ids, minlength=50).tolist(), expected / expected.sum())


def ordered_counts(
    sampler: ssc.Sampler, num_samples: int, method: Method, repetitions: int
) -> list[int]:
    counts = dict.fromkeys(ordered_probabilities([1 / 4] * 4, num_samples), 0)
    target = torch.empty(0, dtype=torch.int64)
    for seed in range(repetitions):
        ids = ops.sample(sampler._proposal(), key(seed, 3), target, num_samples, method, None)[0]
        counts[tuple(ids.tolist())] += 1
    return list(counts.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [Method.DISTINCT, Method.RACE], ids=["rejection", "race"])
@pytest.mark.parametrize("num_samples", [1, 3, 4])
def test_every_order_of_distinct_draws(kind: str, method: Method, num_samples: int) -> None:
    repetitions = 4000 if has_native() else 250
    counts = ordered_counts(make_sampler(kind, 4), num_samples, method, repetitions)
    exact = ordered_probabilities(probabilities(kind, 4).tolist(), num_samples)
    assert_chi_square(counts, list(exact.values()))


def test_a_sorted_set_of_samples_would_be_noticed() -> None:
    # As multinomial(...).unique()[:S] does it, the classes at the end are cut off.
    exact = ordered_probabilities([1 / 4] * 4, 2)
    counts = dict.fromkeys(exact, 0)
    for seed in range(600):
        stream = ssc.UniformSampler(4).draw(key(seed), 12)[0]
        counts[tuple(stream.unique()[:2].tolist())] += 1
    with pytest.raises(AssertionError, match="chi-square"):
        assert_chi_square(list(counts.values()), list(exact.values()))


@pytest.mark.parametrize("inclusion", ["expected", "observed", "estimated"])
def test_the_number_of_draws_is_expected(inclusion: str) -> None:
    # E[draws] for S distinct of C equally likely classes: sum of C / (C - i).
    num_classes, num_samples, repetitions = 100, 60, 300
    sampler = ssc.UniformSampler(num_classes)
    draws = [
        int(sampler.draw(key(seed), num_samples, replacement=False)[1])
        for seed in range(repetitions)
    ]
    mean = sum(num_classes / (num_classes - i) for i in range(num_samples))
    variance = sum(num_classes * i / (num_classes - i) ** 2 for i in range(num_samples))
    assert abs(np.mean(draws) - mean) < 4 * (variance / repetitions) ** 0.5
    log_n = sampler.sample(
        torch.tensor([0]), num_samples, replacement=False, inclusion=inclusion
    ).target_log_expected_count
    assert abs(float(log_n.exp()) - 0.6) < 0.12


def test_the_race_says_how_many_draws_it_stands_for() -> None:
    # The mean over many keys of the time of the S-th arrival is the expected number of draws.
    sampler = ssc.LogUniformSampler(50)
    repetitions = 400 if has_native() else 100
    target = torch.empty(0, dtype=torch.int64)
    means = []
    for method in (Method.DISTINCT, Method.RACE):
        draws = [
            int(ops.sample(sampler._proposal(), key(seed), target, 30, method, None)[1])
            for seed in range(repetitions)
        ]
        means.append((np.mean(draws), np.std(draws) / repetitions**0.5))
    (stream, error), (race, race_error) = means
    assert abs(stream - race) < 1 + 4 * (error**2 + race_error**2) ** 0.5
