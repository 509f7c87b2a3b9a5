"""The peers of each sampler: the same draw by PyTorch, NumPy, SciPy and TensorFlow.

Each function returns cases for one of our samplers, by its name in bench_sample.py. TensorFlow's
also give the expected counts of samples and targets, as ours do; the others give ids alone unless
their name says otherwise. Slow ones get a few turns only.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numpy
import torch
from harness import Case

SLOW_TURNS = 7


def zipf_weights(classes: int) -> torch.Tensor:
    """The log-uniform probabilities as float64 weights [C]."""
    ids = torch.arange(classes, dtype=torch.float64)
    return torch.log1p(1.0 / (ids + 1)) / math.log1p(classes)


def uniform(classes: int, samples: int, replacement: bool) -> list[Case]:
    generator = numpy.random.default_rng(0)
    cases = [
        Case(
            "numpy choice",
            lambda: generator.choice(classes, samples, replace=replacement),
            max_repetitions=SLOW_TURNS,
        )
    ]
    if replacement:
        cases.append(Case("torch.randint", lambda: torch.randint(classes, (samples,))))
    else:
        cases.append(
            Case(
                "torch.randperm",
                lambda: torch.randperm(classes)[:samples],
                max_repetitions=SLOW_TURNS,
            )
        )
    return cases


def log_uniform(classes: int, samples: int, replacement: bool) -> list[Case]:
    """A formula over torch.rand, with replacement; without, its first distinct ids as people do it,
    by drawing more and `unique`, put back into the order of the draws."""
    scale = math.log1p(classes)

    def stream(length: int) -> torch.Tensor:
        u = torch.rand(length, dtype=torch.float64)
        return torch.expm1(u * scale).long().clamp_(max=classes - 1)

    def distinct() -> torch.Tensor:
        length = 2 * samples
        while True:
            drawn = stream(length)
            ids, which = drawn.unique(return_inverse=True)
            first = torch.full_like(ids, length).scatter_reduce_(
                0, which, torch.arange(length), "amin"
            )
            if len(ids) >= samples:
                return drawn[first.sort().values[:samples]]
            length *= 2

    if replacement:
        return [Case("torch.rand, expm1", lambda: stream(samples))]
    return [Case("torch.rand, expm1, unique", distinct)]


def weighted(classes: int, samples: int, replacement: bool) -> list[Case]:
    weights = zipf_weights(classes)
    weights32 = weights.float()
    p = weights.numpy() / weights.numpy().sum()
    generator = numpy.random.default_rng(0)
    cases = [
        Case(
            "torch.multinomial",
            lambda: torch.multinomial(weights32, samples, replacement=replacement),
            max_repetitions=SLOW_TURNS,
        ),
        Case(
            "numpy choice",
            lambda: generator.choice(classes, samples, replace=replacement, p=p),
            max_repetitions=SLOW_TURNS,
        ),
    ]
    if replacement and importlib.util.find_spec("scipy"):
        from scipy.stats.sampling import DiscreteAliasUrn

        urn = DiscreteAliasUrn(p, random_state=numpy.random.default_rng(0))
        cases.append(Case("scipy DiscreteAliasUrn", lambda: urn.rvs(samples)))
    return cases


def mixed(classes: int, samples: int, target: torch.Tensor) -> list[Case]:
    """Half uniform, half by weights, with the mixture's log counts of samples and targets."""
    q = zipf_weights(classes).float()
    q /= q.sum()
    half = samples // 2

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.cat(
            (
                torch.randint(classes, (half,)),
                torch.multinomial(q, samples - half, replacement=True),
                target,
            )
        )
        return ids, torch.log(half / classes + (samples - half) * q[ids])

    return [Case("randint and multinomial, with counts", draw, max_repetitions=SLOW_TURNS)]


def in_batch(target: torch.Tensor) -> list[Case]:
    """The batch's own counts for every target, as `torch.unique` gives them."""

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        _, which, counts = target.unique(return_inverse=True, return_counts=True)
        return target, counts[which].float().log()

    return [Case("torch.unique, with counts", draw)]


def build(weights: torch.Tensor) -> list[Case]:
    """Other tables for weighted draws from the same float64 weights [C]."""
    w = weights.numpy()
    cases = [
        Case("numpy cumsum", lambda: numpy.cumsum(w / w.sum()), max_repetitions=SLOW_TURNS),
    ]
    if importlib.util.find_spec("scipy"):
        from scipy.stats.sampling import DiscreteAliasUrn

        cases.append(
            Case("scipy DiscreteAliasUrn", lambda: DiscreteAliasUrn(w), max_repetitions=SLOW_TURNS)
        )
    return cases


def tensorflow(
    name: str, classes: int, samples: int, target: torch.Tensor, replacement: bool, threads: int
) -> list[Case]:
    """TensorFlow's candidate sampler of the same kind in a tf.function, if it is installed."""
    if importlib.util.find_spec("tensorflow") is None:
        return []
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    labels = tf.constant(target.numpy()[:, None])
    common: dict[str, Any] = {
        "true_classes": labels,
        "num_true": 1,
        "num_sampled": samples,
        "unique": not replacement,
        "range_max": classes,
    }
    sampler: Callable[..., object]
    if name == "weighted":
        sampler = tf.random.fixed_unigram_candidate_sampler
        common["unigrams"] = (zipf_weights(classes) * 1e6).tolist()
    elif name == "streaming":
        sampler = tf.random.learned_unigram_candidate_sampler
    else:
        sampler = {
            "uniform": tf.random.uniform_candidate_sampler,
            "log-uniform": tf.random.log_uniform_candidate_sampler,
        }[name]

    @tf.function
    def draw():
        return sampler(**common)

    return [Case(f"tensorflow {sampler.__name__}", draw, max_repetitions=SLOW_TURNS)]
