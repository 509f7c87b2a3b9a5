"""Advice in words, from the figures of `diagnose`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .diagnose import Diagnosis

# Relative deviations of the partition function: the one to aim at, and one that is poor.
_GOOD_DEVIATION = 0.1
_POOR_DEVIATION = 0.3
_POOR_BIAS = 0.1  # a batch whose own targets are the samples is off by some per cent, by chance


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def advise(d: Diagnosis, frequencies_known: bool = True) -> tuple[str, ...]:
    """Advice from the figures, the most important first.

    Args:
        frequencies_known: whether a pool has a log_q.
    """
    if d.non_finite_rows > 0:
        return (
            f"the model's logits are not finite in {d.non_finite_rows:,} of {d.num_rows:,} rows:"
            " look for NaN and inf in input, weight and bias; no other figure says anything",
        )
    advice = []
    C, S, deviation = d.num_classes, d.num_samples, d.partition_deviation
    if 2 * S >= C:
        advice.append(f"exact is cheaper here: C={C:,}, S={S:,}")
    if d.never_drawn > 0.01:
        advice.append(
            f"{percent(d.never_drawn)} of the model's probability is on classes that the sampler"
            " never draws, which the loss can't push down: give them a small weight"
        )
    if d.targets_never_drawn > 0:
        advice.append(
            f"{d.targets_never_drawn:,} of the {d.num_rows:,} targets are classes that the sampler"
            " never draws, whose logits are left uncorrected: give them a small weight"
        )
    unexplained = abs(d.partition_bias + d.never_drawn)
    biased = unexplained > max(_POOR_BIAS, 4 * d.partition_bias_error)
    if not frequencies_known:
        advice.append(
            "without log_q every class of the pool weighs the same, which estimates no partition"
            " function: give the sampler the classes' frequencies as log_q, such as a"
            " WeightedSampler of their counts or a StreamingSampler"
        )
    elif biased and d.from_pool:
        advice.append(
            f"the partition function is off by {100 * d.partition_bias:+.3g} %: the targets in the"
            " pool do not have the frequencies that log_q says"
        )
    elif biased:
        advice.append(
            f"the partition function is off by {100 * d.partition_bias:+.3g} %: the expected counts"
            " do not fit the draws"
        )
    if deviation > _POOR_DEVIATION:
        advice.append(
            f"the effective sample size is {d.effective_sample_size:,.0f} of {S:,}: the proposal is"
            " far from the model's distribution, and the partition function deviates by"
            f" {percent(deviation)}"
        )
        advice.extend(_remedies(d))
    if d.replacement and d.distinct_share < 0.7 and 2 * S < C and not d.from_pool:
        advice.append(
            f"only {percent(d.distinct_share)} of the samples are distinct: replacement=False"
            f" gives {S:,} different classes"
        )
    over = " from batch to batch" if d.from_pool else ""
    return tuple(advice) or (
        f"nothing to change: the partition function deviates by {percent(deviation)}{over}",
    )


def _remedies(d: Diagnosis) -> Iterator[str]:
    """Ways to lower a poor deviation."""
    best = d.deviations["the best proposal"]
    name, other = min(
        (item for item in d.deviations.items() if item[0] != "the best proposal"),
        key=lambda item: item[1],
    )
    if other < 0.7 * d.partition_deviation:
        yield f"try a {name} proposal: it would deviate by {percent(other)}"
    if best < 0.7 * min(other, d.partition_deviation):
        mixed = "" if d.from_pool else ", or in-batch targets mixed in"
        yield (
            f"try a proposal nearer to the model: class frequencies to the power 0.75{mixed};"
            f" the best one for this batch would deviate by {percent(best)}"
        )
    if d.from_pool:
        yield (
            "or more negatives: a larger batch, a QueueSampler of more earlier targets, or a"
            " MixedSampler with a proposal that draws"
        )
        return
    needed = d.num_samples * (d.partition_deviation / _GOOD_DEVIATION) ** 2
    if 2 * needed < d.num_classes:
        yield (
            f"or S={math.ceil(needed):,} samples, with which it would deviate by"
            f" {percent(_GOOD_DEVIATION)}"
        )
