"""How well sampled classes stand for all of them, measured on a batch.

A draw estimates the partition function Z of each row by

    Ẑ = exp(l_t) + sum over samples s != t of exp(l_s) / n_s

with plain logits l and expected counts n: what the loss of correction="negatives" contains. Bias
and variance of Ẑ, and the error of the gradient that follows from it, say how good a proposal and a
number of samples are. The effective sample size (sum w)^2 / sum w^2 of the terms w = exp(l_s) / n_s
says how many samples of the model's own distribution S independent draws are worth (Kong, "A note
on importance sampling using standardized weights", 1992). Without replacement it says less, since a
class that is certain to be drawn adds no variance, whatever its term is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _checks, exact
from .functional import sampled_softmax_loss
from .reference.exact import CHUNK_ELEMENTS, chunk_classes
from .reference.sample import LogUniform
from .samplers import Sampler, Samples

__all__ = ["Diagnosis", "diagnose"]

_NAME = "diagnose"

# What the advice aims at: a relative deviation of the partition function, or more than that.
_GOOD_DEVIATION = 0.1
_POOR_DEVIATION = 0.3
_POOR_BIAS = 0.1  # a batch whose own targets are the samples is off by some per cent, by chance


class Diagnosis(NamedTuple):
    """What `diagnose` returns; `str()` makes a report of it. Means are over rows and draws."""

    num_classes: int
    """C."""
    num_samples: int
    """S."""
    num_rows: int
    """Rows of the batch that count."""
    num_draws: int
    """Draws that were tried."""
    replacement: bool
    """How they were drawn."""
    effective_sample_size: float
    """(sum w)^2 / sum w^2 of the terms of Ẑ, mean."""
    hit_rate: float
    """The share of the rows whose target is among the samples."""
    distinct_share: float
    """The number of distinct classes in a sample, by S."""
    partition_bias: float
    """Mean of Ẑ / Z - 1."""
    partition_bias_error: float
    """The standard error of that."""
    partition_variance: float
    """Variance of Ẑ / Z over the draws, mean over the rows."""
    gradient_error: float
    """Root mean square error of the gradient of the input, by the exact gradient's."""
    never_drawn: float
    """The model's probability of classes that the sampler never draws, targets left out."""
    targets_never_drawn: int
    """Rows whose target the sampler never draws, and whose logit is not corrected for that."""
    deviations: dict[str, float]
    """Computed standard deviation of Ẑ / Z for S draws with replacement from a uniform and a
    log-uniform proposal, and from the best one for this batch, q ∝ sqrt(mean over rows of p^2)."""
    advice: tuple[str, ...]
    """What to do, in words."""

    @property
    def partition_deviation(self) -> float:
        """The square root of the variance."""
        return math.sqrt(self.partition_variance)

    def __str__(self) -> str:
        kind = "with" if self.replacement else "without"
        others = ", ".join(f"{name} {_percent(x)}" for name, x in self.deviations.items())
        bias, error = 100 * self.partition_bias, 100 * self.partition_bias_error
        lines = (
            f"{self.num_samples:,} of {self.num_classes:,} classes {kind} replacement,"
            f" {self.num_rows:,} rows, {self.num_draws} draws",
            f"  effective sample size          {self.effective_sample_size:,.1f}",
            f"  distinct samples               {_percent(self.distinct_share)}",
            f"  rows with an accidental hit    {_percent(self.hit_rate)}",
            f"  partition function, bias       {bias:+.2g} % (standard error {error:.2g} %)",
            f"  partition function, deviation  {_percent(self.partition_deviation)}",
            f"    with replacement from        {others}",
            f"  gradient of the input, error   {_percent(self.gradient_error)}",
            f"  never drawn, of the model      {_percent(self.never_drawn)}",
            f"  never drawn, of the targets    {self.targets_never_drawn:,} of {self.num_rows:,}",
            *(f"- {line}" for line in self.advice),
        )
        return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def diagnose(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    sampler: Sampler,
    num_samples: int,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    replacement: bool = True,
    inclusion: str = "expected",
    num_draws: int = 16,
    ignore_index: int = -100,
    generator: torch.Generator | None = None,
) -> Diagnosis:
    """Measure a sampler and a number of samples on a batch, against the exact softmax.

    Costs about three passes over all classes and `num_draws` sampled steps; no array [B, C] is
    stored. The sampler learns nothing from it (it is in eval mode meanwhile).

    Args:
        input: [*, D], the batch that a model in training gives; some hundred rows say enough.
        weight: [C, D].
        target: [*] int64.
        sampler: what to draw from.
        num_samples: S.
        bias: [C] or None.
        temperature: divides the logits.
        replacement, inclusion, generator: as in `Sampler.sample`.
        num_draws: how often to draw, at least 2. Default 16.
        ignore_index: rows with this target don't count.

    Returns:
        A `Diagnosis`; `print` it.

    Raises:
        ValueError, TypeError, IndexError: as `sampled_softmax_loss` and `Sampler.sample`; a batch
            without a row that counts, or fewer than two draws.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> h, weight, target = torch.randn(64, 8), torch.randn(3000, 8), torch.arange(64)
        >>> sampler = ssc.UniformSampler(3000)
        >>> diagnosis = ssc.diagnose(h, weight, target, sampler, 2048, num_draws=4)
        >>> diagnosis.advice[0]
        'exact is cheaper here: C=3,000, S=2,048'
    """
    _checks.check_parameters(_NAME, input, weight, bias)
    _checks.check_target(_NAME, target, input)
    _checks.check_temperature(_NAME, temperature)
    _checks.check_ignore_index(_NAME, ignore_index)
    if not isinstance(sampler, Sampler):
        raise TypeError(f"{_NAME}: sampler must be a Sampler, got {type(sampler).__name__}")
    _checks.check_positive_int(_NAME, "num_draws", num_draws)
    if num_draws < 2:
        raise ValueError(f"{_NAME}: num_draws must be at least 2, got {num_draws}")
    _checks.check_id_range(_NAME, "target", target, weight.shape[0], ignore_index)
    counted = target.reshape(-1) != ignore_index
    rows = target.reshape(-1)[counted]
    if rows.numel() == 0:
        raise ValueError(f"{_NAME}: target must have a row that is not ignore_index={ignore_index}")
    batch = _Batch(
        input.detach().reshape(-1, input.shape[-1])[counted],
        weight.detach(),
        None if bias is None else bias.detach(),
        rows,
        float(temperature),
    )
    with _in_eval_mode(sampler):
        loss, lse = _exact_rows(batch)
        model = _sweep(batch, sampler, loss, lse, num_samples)
        options: dict[str, Any] = {
            "replacement": replacement,
            "inclusion": inclusion,
            "generator": generator,
        }
        samples = [sampler.sample(rows, num_samples, **options) for _ in range(num_draws)]
    draws = [_measure(batch, drawn, loss, lse) for drawn in samples]
    ratio = torch.stack([draw.ratio for draw in draws])  # [draws, rows]
    by_draw = ratio.mean(dim=1)
    never_drawn, deviations = model
    result = Diagnosis(
        num_classes=weight.shape[0],
        num_samples=num_samples,
        num_rows=rows.numel(),
        num_draws=num_draws,
        replacement=replacement,
        effective_sample_size=_mean([draw.size for draw in draws]),
        hit_rate=_mean([draw.hit for draw in draws]),
        distinct_share=_mean([draw.distinct for draw in draws]) / num_samples,
        partition_bias=float(by_draw.mean()) - 1.0,
        partition_bias_error=float(by_draw.std()) / math.sqrt(num_draws),
        partition_variance=float(ratio.var(dim=0).mean()),
        gradient_error=_gradient_error(batch, samples),
        never_drawn=never_drawn,
        targets_never_drawn=_targets_never_drawn(sampler, rows),
        deviations=deviations,
        advice=(),
    )
    return result._replace(advice=_advice(result))


@contextmanager
def _in_eval_mode(sampler: Sampler) -> Iterator[None]:
    training = sampler.training
    sampler.eval()
    try:
        yield
    finally:
        sampler.train(training)


def _targets_never_drawn(sampler: Sampler, target: Tensor) -> int:
    try:
        log_q = sampler.log_prob(target)
    except ValueError:  # a pool's own counts, and its targets are in it
        return 0
    return int(torch.count_nonzero(log_q == -torch.inf))


def _mean(values: list[Tensor]) -> float:
    return float(torch.stack([value.double().mean() for value in values]).mean())


class _Batch(NamedTuple):
    """The rows that count, without gradients."""

    h: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor
    temperature: float


class _Draw(NamedTuple):
    """What one draw says."""

    ratio: Tensor
    """[B] Ẑ / Z, float64."""
    size: Tensor
    """[B] effective sample size."""
    hit: Tensor
    """[B] 1 where the target is among the samples."""
    distinct: Tensor
    """[] number of distinct classes."""


@torch.no_grad()
def _exact_rows(batch: _Batch) -> tuple[Tensor, Tensor]:
    """The exact loss and logsumexp [B], float64."""
    h, weight, bias, target, temperature = batch
    loss, lse = exact._loss_rows(h, weight, bias, target, temperature, exact._IGNORE_NOTHING)
    return loss.double(), lse.double()


@torch.no_grad()
def _measure(batch: _Batch, samples: Samples, loss: Tensor, lse: Tensor) -> _Draw:
    h, weight, bias, target, temperature = batch
    ids, log_count, _ = samples
    _checks.check_id_range(_NAME, "the sampler's ids", ids, weight.shape[0])
    log_n = ids.new_zeros(ids.shape, dtype=torch.float64) if log_count is None else log_count
    w, b = weight[ids], None if bias is None else bias[ids]
    terms: list[tuple[Tensor, Tensor, Tensor]] = []
    step = max(1, CHUNK_ELEMENTS // ids.numel())
    for rows, t in zip(torch.split(h, step), torch.split(target, step), strict=True):
        z = exact.logits(rows, w, bias=b, temperature=temperature).double() - log_n.double()
        hits = (ids == t[:, None]) & (log_n < torch.inf)  # +inf: a sample that doesn't count
        z = z.masked_fill(hits, -torch.inf)
        terms.append((z.logsumexp(1), effective_sample_size(z), hits.any(1)))
    negatives, size, hit = (torch.cat(parts) for parts in zip(*terms, strict=True))
    ratio = (negatives - lse).exp() + (-loss).exp()
    return _Draw(ratio, size, hit, torch.tensor(torch.unique(ids[log_n < torch.inf]).numel()))


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 over the last dimension, from log w; 0 where all w are 0.

    Example:
        >>> import torch
        >>> from sampled_softmax_cuda.diagnose import effective_sample_size
        >>> effective_sample_size(torch.tensor([1.0, 1.0, 2.0, 0.0]).log())  # 16 / 6
        tensor(2.6667)
    """
    size = (2 * log_weights.logsumexp(-1) - (2 * log_weights).logsumexp(-1)).exp()
    return torch.where((log_weights > -torch.inf).any(-1), size, 0.0)


def _gradient_error(batch: _Batch, draws: list[Samples]) -> float:
    """Root mean square of the sampled input gradient's error, by that of the exact gradient."""
    h, weight, bias, target, temperature = batch
    h = h.clone().requires_grad_()
    parameters: dict[str, Any] = {"bias": bias, "temperature": temperature, "reduction": "sum"}
    with torch.enable_grad():
        loss = exact.exact_cross_entropy(
            h, weight, target, ignore_index=exact._IGNORE_NOTHING, **parameters
        )
        (expected,) = torch.autograd.grad(loss, h)
        square = 0.0
        for samples in draws:
            loss = sampled_softmax_loss(
                h, weight, target, samples, correction="negatives", **parameters
            )
            (grad,) = torch.autograd.grad(loss, h)
            square += float((grad.double() - expected.double()).square().sum())
    scale = float(expected.double().square().sum())
    error = square / len(draws)
    return math.sqrt(error / scale) if scale > 0 else (math.inf if error > 0 else 0.0)


@torch.no_grad()
def _sweep(
    batch: _Batch, sampler: Sampler, loss: Tensor, lse: Tensor, num_samples: int
) -> tuple[float, dict[str, float]]:
    """Over all classes: the probability that is never drawn, and deviations of other proposals.

    S independent draws have Var(Ẑ / Z) = (sum_k p_k^2 / q_k - (sum_k p_k)^2) / S over the classes
    other than the target. Its mean over the rows is least for q ∝ sqrt(mean p^2).
    """
    h, weight, bias, target, temperature = batch
    num_classes = weight.shape[0]
    some_are_never_drawn = getattr(sampler, "num_drawable", num_classes) < num_classes
    sums = dict.fromkeys(("uniform", "log-uniform", "the best proposal"), 0.0)
    never = 0.0
    chunk = chunk_classes(h.shape[0], num_classes)
    for begin in range(0, num_classes, chunk):
        end = min(begin + chunk, num_classes)
        ids = torch.arange(begin, end, device=h.device)
        z = exact._logits(h, weight, bias, begin, end, temperature)
        p = (z.double() - lse[:, None]).exp().masked_fill(ids == target[:, None], 0.0)
        square = p.square().mean(dim=0)
        sums["uniform"] += float(square.sum()) * num_classes
        sums["log-uniform"] += float((square / LogUniform(num_classes).probability(ids)).sum())
        sums["the best proposal"] += float(square.sqrt().sum())
        if some_are_never_drawn:
            never += float(p.mean(dim=0)[sampler.log_prob(ids) == -torch.inf].sum())
    sums["the best proposal"] **= 2
    others = float((-torch.expm1(-loss)).square().mean())
    deviations = {name: math.sqrt(max(x - others, 0.0) / num_samples) for name, x in sums.items()}
    return never, deviations


def _advice(d: Diagnosis) -> tuple[str, ...]:
    """What follows from the figures, the most important first."""
    advice = []
    C, S, deviation = d.num_classes, d.num_samples, d.partition_deviation
    if 2 * S >= C:
        advice.append(f"exact is cheaper here: C={C:,}, S={S:,}")
    if d.never_drawn > 0.01:
        advice.append(
            f"{_percent(d.never_drawn)} of the model's probability is on classes that the sampler"
            " never draws, which the loss can't push down: give them a small weight"
        )
    if d.targets_never_drawn > 0:
        advice.append(
            f"{d.targets_never_drawn:,} of the {d.num_rows:,} targets are classes that the sampler"
            " never draws, whose logits are left uncorrected: give them a small weight"
        )
    unexplained = abs(d.partition_bias + d.never_drawn)
    if unexplained > max(_POOR_BIAS, 4 * d.partition_bias_error):
        advice.append(
            f"the partition function is off by {100 * d.partition_bias:+.3g} %: the expected counts"
            " do not fit the draws"
        )
    if deviation > _POOR_DEVIATION:
        advice.append(
            f"the effective sample size is {d.effective_sample_size:,.0f} of {S:,}: the proposal is"
            " far from the model's distribution, and the partition function deviates by"
            f" {_percent(deviation)}"
        )
        advice.extend(_remedies(d))
    if d.replacement and d.distinct_share < 0.7 and 2 * S < C:
        advice.append(
            f"only {_percent(d.distinct_share)} of the samples are distinct: replacement=False"
            f" gives {S:,} different classes"
        )
    return tuple(advice) or (
        f"nothing to change: the partition function deviates by {_percent(deviation)}",
    )


def _remedies(d: Diagnosis) -> Iterator[str]:
    """What would lower a poor deviation."""
    best = d.deviations["the best proposal"]
    name, other = min(
        (item for item in d.deviations.items() if item[0] != "the best proposal"),
        key=lambda item: item[1],
    )
    if other < 0.7 * d.partition_deviation:
        yield f"try a {name} proposal: it would deviate by {_percent(other)}"
    if best < 0.7 * min(other, d.partition_deviation):
        yield (
            "try a proposal nearer to the model: class frequencies to the power 0.75, or in-batch"
            f" targets mixed in; the best one for this batch would deviate by {_percent(best)}"
        )
    needed = d.num_samples * (d.partition_deviation / _GOOD_DEVIATION) ** 2
    if 2 * needed < d.num_classes:
        yield (
            f"or S={math.ceil(needed):,} samples, with which it would deviate by"
            f" {_percent(_GOOD_DEVIATION)}"
        )
