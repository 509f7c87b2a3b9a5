"""Draws against exact enumeration, for at most six classes: every sequence, every order, every set.

On every backend, with chi-square; keys are fixed. Larger numbers of classes are in
test_sample_distribution.py, on one backend.
"""

from __future__ import annotations

import itertools
import math

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
)
from sampled_softmax_cuda.ops import sample as ops
from sampled_softmax_cuda.proposals import Method

METHODS = pytest.mark.parametrize(
    "method", [Method.DISTINCT, Method.RACE], ids=["rejection", "race"]
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num_classes", "num_samples"), [(2, 6), (3, 4), (5, 3), (6, 3)])
def test_every_sequence_with_replacement(
    backend: str, kind: str, num_classes: int, num_samples: int
) -> None:
    # One stream cut into samples: whether neighbours depend on each other shows as well.
    repetitions = 40 * num_classes**num_samples
    ids = make_sampler(kind, num_classes).draw(key(num_classes), repetitions * num_samples)[0]
    code = torch.zeros(repetitions, dtype=torch.int64)
    for column in ids.view(repetitions, num_samples).unbind(1):
        code = code * num_classes + column
    q = probabilities(kind, num_classes)
    exact = [math.prod(s) for s in itertools.product(q, repeat=num_samples)]
    counts = torch.bincount(code, minlength=len(exact))
    assert_chi_square(counts.tolist(), exact)


@pytest.mark.parametrize("replacement", [True, False])
def test_every_outcome_of_a_mixture(device: str, replacement: bool) -> None:
    # Two samples by each of two components that learn and that know: 81 outcomes, or 36.
    stream = ssc.StreamingSampler(3, staleness=0.0)
    stream.update(torch.tensor([2, 2, 0]))
    sampler = ssc.MixedSampler([stream, make_sampler("weighted", 3)])
    q = (np.array([2, 1, 3]) / 6, probabilities("weighted", 3))
    pairs = []
    for p in q:
        if replacement:
            pairs.append({(a, b): p[a] * p[b] for a in range(3) for b in range(3)})
        else:
            pairs.append(ordered_probabilities(p.tolist(), 2))
    exact = {(*a, *b): pairs[0][a] * pairs[1][b] for a in pairs[0] for b in pairs[1]}
    counts = dict.fromkeys(exact, 0)
    target = torch.tensor([0])
    for _ in range(1500 if device == "native" else 400):
        counts[tuple(sampler.sample(target, 4, replacement=replacement).ids.tolist())] += 1
    assert_chi_square(list(counts.values()), list(exact.values()))


def distinct_draws(
    backend: str, sampler: ssc.Sampler, num_samples: int, method: Method
) -> list[tuple[int, ...]]:
    """Samples of many keys, fewer where a draw takes a millisecond."""
    proposal, target = sampler._proposal(), torch.empty(0, dtype=torch.int64)
    return [
        tuple(ops.sample(proposal, key(seed, 9), target, num_samples, method, None)[0].tolist())
        for seed in range(3000 if backend not in ("reference", "simt", "ptx") else 300)
    ]


@METHODS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num_classes", "num_samples"), [(5, 2), (6, 3), (6, 6)])
def test_every_order_and_every_set_without_replacement(
    backend: str, kind: str, num_classes: int, num_samples: int, method: Method
) -> None:
    draws = distinct_draws(backend, make_sampler(kind, num_classes), num_samples, method)
    orders = ordered_probabilities(probabilities(kind, num_classes).tolist(), num_samples)
    order_counts = dict.fromkeys(orders, 0)
    for ids in draws:
        order_counts[ids] += 1
    assert_chi_square(list(order_counts.values()), list(orders.values()))
    # How often each class is included: deviations of binomial counts.
    for k in range(num_classes):
        frequency = min(1.0, sum(p for ids, p in orders.items() if k in ids))
        got = sum(k in ids for ids in draws) / len(draws)
        error = (frequency * (1 - frequency) / len(draws)) ** 0.5
        assert abs(got - frequency) <= 4 * error + 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num_classes", "num_samples"), [(5, 2), (6, 3), (6, 5), (6, 6)])
def test_expected_counts_are_near_the_exact_inclusion_frequencies(
    backend: str, kind: str, num_classes: int, num_samples: int
) -> None:
    # 1 - (1 - q)^t with one t for all is not exact but for equal classes and for S = C. A t as the
    # mistake S would make it is off by far more.
    orders = ordered_probabilities(probabilities(kind, num_classes).tolist(), num_samples)
    exact = np.zeros(num_classes)
    for ids, p in orders.items():
        exact[list(ids)] += p
    ids = torch.arange(num_classes)
    sampler = make_sampler(kind, num_classes)
    n = sampler.log_expected_count(ids, num_samples, replacement=False).double().exp().cpu().numpy()
    same = kind == "uniform" or num_samples == num_classes
    np.testing.assert_allclose(n, exact, rtol=1e-6 if same else 0.05)
    wrong = -np.expm1(num_samples * np.log1p(-probabilities(kind, num_classes)))
    assert np.abs(wrong / exact - 1).max() > 0.05


def distinct_outcomes(q: np.ndarray, num_samples: int) -> dict[tuple[frozenset[int], int], float]:
    """The probability of each (set of S distinct classes, number of draws), up to 1e-9 in all."""
    left = {frozenset[int](): 1.0}  # sets that are not full yet, after so many draws
    done: dict[tuple[frozenset[int], int], float] = {}
    draws = 0
    while sum(left.values()) > 1e-9:
        draws += 1
        after: dict[frozenset[int], float] = {}
        for found, p in left.items():
            for k, q_k in enumerate(q):
                now = found | {k}
                if len(now) == num_samples:
                    done[now, draws] = done.get((now, draws), 0.0) + p * q_k
                else:
                    after[now] = after.get(now, 0.0) + p * q_k
        left = after
    return done


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inclusion", ["expected", "observed"])
def test_the_partition_function_over_all_outcomes(kind: str, inclusion: str) -> None:
    # E sum exp(z) / n, exactly, for six classes. With S of the order of C neither t is exact, and
    # TensorFlow's, which is that of a draw that was sure to be new, least so; at S << C both are
    # (test_sample_counts.py).
    q, z = probabilities(kind, 6), np.exp([0.4, -0.8, 0.3, 1.1, -0.2, 0.6])
    ids = torch.arange(6)
    n = make_sampler(kind, 6).log_expected_count(ids, 3, replacement=False).double().exp().numpy()
    mean = mistaken = 0.0
    for (found, draws), p in distinct_outcomes(q, 3).items():
        kept = sorted(found)
        if inclusion == "observed":
            n = -np.expm1(draws * np.log1p(-q))
        mean += p * float((z[kept] / n[kept]).sum())
        mistaken += p * float((z[kept] / -np.expm1(3 * np.log1p(-q[kept]))).sum())
    bias = mean / z.sum() - 1
    assert abs(bias) < (0.03 if inclusion == "expected" else 0.13)
    assert mistaken / z.sum() - 1 > max(0.1, 1.5 * abs(bias))
