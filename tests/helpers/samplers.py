"""Shared by the tests of the samplers: samplers by name, exact probabilities, chi-square."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from scipy import stats
from torch import Tensor

import sampled_softmax_cuda as ssc

KINDS = ("uniform", "log_uniform", "weighted")


def parts(samples: ssc.Samples) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """ids, log n of them and of the targets."""
    return samples.ids, samples.log_expected_count, samples.target_log_expected_count


def zipf(num_classes: int, power: float = 1.0) -> Tensor:
    """Weights 1 / (k + 1)^power, float64 [C]."""
    return torch.arange(1, num_classes + 1, dtype=torch.float64) ** -power


def make_sampler(kind: str, num_classes: int) -> ssc.Sampler:
    if kind == "uniform":
        return ssc.UniformSampler(num_classes)
    if kind == "log_uniform":
        return ssc.LogUniformSampler(num_classes)
    return ssc.WeightedSampler(zipf(num_classes, 0.8))


def probabilities(kind: str, num_classes: int) -> np.ndarray:
    """q of `make_sampler(kind, num_classes)` by NumPy in float64."""
    k = np.arange(num_classes, dtype=np.float64)
    if kind == "uniform":
        return np.full(num_classes, 1.0 / num_classes)
    if kind == "log_uniform":
        return np.log1p(1.0 / (k + 1.0)) / np.log1p(num_classes)
    w = (k + 1.0) ** -0.8
    return w / w.sum()


def key(seed: int, offset: int = 0) -> Tensor:
    return torch.tensor([seed, offset], dtype=torch.int64)


def ordered_probabilities(q: Sequence[float], num_samples: int) -> dict[tuple[int, ...], float]:
    """The probability of each sequence of S distinct draws: prod_i q_i / (1 - those before)."""
    result = {}
    for sequence in itertools.permutations(range(len(q)), num_samples):
        probability, left = 1.0, 1.0
        for k in sequence:
            probability *= q[k] / left
            left -= q[k]
        result[sequence] = probability
    return result


def assert_chi_square(observed: Sequence[float], probability: Sequence[float]) -> None:
    """Counts agree with probabilities: p > 1e-4. Cells are merged until 8 counts are expected.

    Keys are fixed, so a test that passes once passes always: the bound only has to leave room for
    the one draw that was looked at when the test was written.
    """
    counts = np.asarray(observed, dtype=np.float64)
    expected = np.asarray(probability, dtype=np.float64) * counts.sum()
    assert counts[expected == 0].sum() == 0, "a class of probability 0 was drawn"
    order = np.argsort(-expected, kind="stable")
    merged: list[list[float]] = []
    for cell in order[expected[order] > 0]:
        if merged and merged[-1][1] < 8:
            merged[-1][0] += counts[cell]
            merged[-1][1] += expected[cell]
        else:
            merged.append([counts[cell], expected[cell]])
    if len(merged) > 1 and merged[-1][1] < 8:
        last = merged.pop()
        merged[-1] = [a + b for a, b in zip(merged[-1], last, strict=True)]
    assert len(merged) > 1, "too few draws to say anything"
    table = np.array(merged)
    statistic = float((((table[:, 0] - table[:, 1]) ** 2) / table[:, 1]).sum())
    p = float(stats.chi2.sf(statistic, len(table) - 1))
    assert p > 1e-4, (
        f"chi-square {statistic:.1f} with {len(table) - 1} degrees of freedom: p={p:.2g}"
    )
