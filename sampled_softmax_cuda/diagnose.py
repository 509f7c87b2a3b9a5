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
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _checks, exact
from ._advice import advise as _advice
from ._advice import percent
from .functional import sampled_softmax_loss
from .losses.rows import CHUNK_ELEMENTS, chunk_classes
from .objectives import SOFTMAX
from .ops.exact import chunk_logits, loss_rows
from .options import Inclusion, Options
from .samplers import LogUniformSampler, Sampler, Samples
from .samplers.pool import PoolSampler
from .samplers.pooled import PooledSampler

__all__ = ["Diagnosis", "diagnose"]

_NAME = "diagnose"


class Diagnosis(NamedTuple):
    """The figures of `diagnose`; `str()` makes a report of them. Means are over rows and draws."""

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
    deviations: dict[str, float]
    """Computed standard deviation of Ẑ / Z for S draws with replacement from a uniform and a
    log-uniform proposal, and from the best one for this batch, q ∝ sqrt(mean over rows of p^2)."""
    advice: tuple[str, ...]
    """Advice in words."""
    from_pool: bool = False
    """Whether samples come from the batch itself, or from a queue of earlier ones. The deviation,
    and the error of the bias, are then those over batches: pools drawn anew from the one there is.
    """
    samples_per_draw: float = math.nan
    """Samples that counted, mean; below num_samples where a pool holds less."""
    non_finite_rows: int = 0
    """Rows whose exact loss is NaN or infinite."""
    targets_never_drawn: int = 0
    """Rows whose target the sampler never draws, so that its logit is not corrected."""

    @property
    def partition_deviation(self) -> float:
        """The square root of the variance."""
        return math.sqrt(self.partition_variance)

    def __str__(self) -> str:
        kind = "with" if self.replacement else "without"
        others = ", ".join(f"{name} {percent(x)}" for name, x in self.deviations.items())
        bias, error = 100 * self.partition_bias, 100 * self.partition_bias_error
        short = self.samples_per_draw < self.num_samples
        pool = f" (the pool has {self.samples_per_draw:,.4g})" if short else ""
        over = ", over batches" if self.from_pool else ""
        lines = (
            f"{self.num_samples:,}{pool} of {self.num_classes:,} classes {kind} replacement,"
            f" {self.num_rows:,} rows, {self.num_draws} draws",
            f"  effective sample size          {self.effective_sample_size:,.1f}",
            f"  distinct samples               {percent(self.distinct_share)}",
            f"  rows with an accidental hit    {percent(self.hit_rate)}",
            f"  partition function, bias       {bias:+.2g} % (standard error {error:.2g} %)",
            f"  partition function, deviation  {percent(self.partition_deviation)}{over}",
            f"    with replacement from        {others}",
            f"  gradient of the input, error   {percent(self.gradient_error)}",
            f"  never drawn, of the model      {percent(self.never_drawn)}",
            f"  never drawn, of the targets    {self.targets_never_drawn:,} of {self.num_rows:,}",
            *(f"- {line}" for line in self.advice),
        )
        return "\n".join(lines)


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
    inclusion: Inclusion = "expected",
    num_draws: int = 16,
    ignore_index: int = -100,
    generator: torch.Generator | None = None,
) -> Diagnosis:
    """Measure a sampler and a number of samples on a batch, against the exact softmax.

    Costs about three passes over all classes and `num_draws` sampled steps; no array [B, C] is
    stored. The sampler learns nothing from it (it is in eval mode meanwhile).

    An in-batch or queue sampler gives one batch the same samples every time. How it varies over
    batches is found by drawing pools of the same size from the pool that is there (the bootstrap).
    Every row of per_row=True draws alike, so the figures are those of each row.

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
    _checks.check_target(_NAME, target, input, weight.shape[0])
    temperature = _checks.check_temperature(_NAME, temperature)
    ignore_index = _checks.check_ignore_index(_NAME, ignore_index)
    if not isinstance(sampler, Sampler):
        raise TypeError(f"{_NAME}: sampler must be a Sampler, got {type(sampler).__name__}")
    num_samples = _checks.check_positive_int(_NAME, "num_samples", num_samples)
    num_draws = _checks.check_positive_int(_NAME, "num_draws", num_draws)
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
        temperature,
    )
    with _in_eval_mode(sampler):
        loss, lse = _exact_rows(batch)
        options: dict[str, Any] = {
            "replacement": replacement,
            "inclusion": inclusion,
            "generator": generator,
        }
        samples = [sampler.sample(rows, num_samples, **options) for _ in range(num_draws)]
        draws = [_measure(batch, drawn, loss, lse) for drawn in samples]
        samples_per_draw = _mean([draw.counted for draw in draws])
        never_drawn, deviations = _sweep(batch, sampler, loss, lse, samples_per_draw)
        pools = [part for part in sampler.modules() if isinstance(part, PoolSampler)]
        varied = draws
        if pools:
            with ExitStack() as stack:
                for pool in pools:
                    stack.enter_context(pool._resampled())
                others = [sampler.sample(rows, num_samples, **options) for _ in range(num_draws)]
            varied = [_measure(batch, drawn, loss, lse) for drawn in others]
    by_draw = _ratios(draws).mean(dim=1)
    over_batches = float(_ratios(varied).mean(dim=1).std()) if pools else 0.0
    result = Diagnosis(
        num_classes=weight.shape[0],
        num_samples=num_samples,
        num_rows=rows.numel(),
        num_draws=num_draws,
        replacement=replacement,
        effective_sample_size=_mean([draw.size for draw in draws]),
        hit_rate=_mean([draw.hit for draw in draws]),
        distinct_share=_mean([draw.distinct for draw in draws]) / max(samples_per_draw, 1.0),
        partition_bias=float(by_draw.mean()) - 1.0,
        partition_bias_error=math.hypot(float(by_draw.std()) / math.sqrt(num_draws), over_batches),
        partition_variance=float(_ratios(varied).var(dim=0).mean()),
        gradient_error=_gradient_error(batch, samples),
        never_drawn=never_drawn,
        deviations=deviations,
        advice=(),
        from_pool=bool(pools),
        samples_per_draw=samples_per_draw,
        non_finite_rows=int((~torch.isfinite(loss + lse)).sum()),
        targets_never_drawn=_targets_never_drawn(sampler, rows, weight.shape[0]),
    )
    return result._replace(advice=_advice(result, all(p.log_q is not None for p in pools)))


@contextmanager
def _in_eval_mode(sampler: Sampler) -> Iterator[None]:
    training = sampler.training
    sampler.eval()
    try:
        yield
    finally:
        sampler.train(training)


def _targets_never_drawn(sampler: Sampler, target: Tensor, num_classes: int) -> int:
    if not _may_miss_classes(sampler, num_classes):
        return 0
    return int(torch.count_nonzero(sampler.log_prob(target) == -torch.inf))


def _mean(values: list[Tensor]) -> float:
    return float(torch.stack([value.double().mean() for value in values]).mean())


class _Batch(NamedTuple):
    """The rows that count, without gradients."""

    h: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor
    temperature: float


def _ratios(draws: list[_Draw]) -> Tensor:
    """Ẑ / Z, [draws, rows]."""
    return torch.stack([draw.ratio for draw in draws])


class _Draw(NamedTuple):
    """The figures of one draw."""

    ratio: Tensor
    """[B] Ẑ / Z, float64."""
    size: Tensor
    """[B] effective sample size."""
    hit: Tensor
    """[B] 1 where the target is among the samples."""
    distinct: Tensor
    """[] number of distinct classes."""
    counted: Tensor
    """[] number of samples that count."""


@torch.no_grad()
def _exact_rows(batch: _Batch) -> tuple[Tensor, Tensor]:
    """The exact loss and logsumexp [B], float64."""
    h, weight, bias, target, temperature = batch
    options = Options(SOFTMAX, temperature=temperature, ignore_index=exact.IGNORE_NOTHING)
    loss, (lse,) = loss_rows(h, weight, bias, target, options)
    return loss.double(), lse.double()


@torch.no_grad()
def _measure(batch: _Batch, samples: Samples, loss: Tensor, lse: Tensor) -> _Draw:
    h, weight, bias, target, temperature = batch
    ids, log_count = samples.ids, samples.log_expected_count
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
    there = ids[log_n < torch.inf]
    return _Draw(ratio, size, hit, *(torch.tensor(x.numel()) for x in (torch.unique(there), there)))


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
            h, weight, target, ignore_index=exact.IGNORE_NOTHING, **parameters
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
    if scale == 0:
        return math.inf if error > 0 else 0.0
    return math.sqrt(error / scale)


@torch.no_grad()
def _sweep(
    batch: _Batch, sampler: Sampler, loss: Tensor, lse: Tensor, num_samples: float
) -> tuple[float, dict[str, float]]:
    """Over all classes: the probability that is never drawn, and deviations of other proposals.

    S independent draws have Var(Ẑ / Z) = (sum_k p_k^2 / q_k - (sum_k p_k)^2) / S over the classes
    other than the target. Its mean over the rows is least for q ∝ sqrt(mean p^2).
    """
    h, weight, bias, target, temperature = batch
    num_classes = weight.shape[0]
    some_are_never_drawn = _may_miss_classes(sampler, num_classes)
    log_uniform = LogUniformSampler(num_classes)
    sums = dict.fromkeys(("uniform", "log-uniform", "the best proposal"), 0.0)
    never = 0.0
    chunk = chunk_classes(h.shape[0], num_classes)
    for begin in range(0, num_classes, chunk):
        end = min(begin + chunk, num_classes)
        ids = torch.arange(begin, end, device=h.device)
        z = chunk_logits(h, weight, bias, begin, end, temperature)
        p = (z.double() - lse[:, None]).exp().masked_fill(ids == target[:, None], 0.0)
        square = p.square().mean(dim=0)
        sums["uniform"] += float(square.sum()) * num_classes
        sums["log-uniform"] += float((square / log_uniform.log_prob(ids).double().exp()).sum())
        sums["the best proposal"] += float(square.sqrt().sum())
        if some_are_never_drawn:
            never += float(p.mean(dim=0)[sampler.log_prob(ids) == -torch.inf].sum())
    sums["the best proposal"] **= 2
    others = float((-torch.expm1(-loss)).square().mean())
    n = max(num_samples, 1.0)
    deviations = {
        name: math.sqrt(max(x - others, 0.0) / n) if math.isfinite(x) else math.nan
        for name, x in sums.items()
    }
    return never, deviations


def _may_miss_classes(sampler: Sampler, num_classes: int) -> bool:
    """Whether some classes may have a q of 0 that `log_prob` knows of."""
    if not isinstance(sampler, PooledSampler):
        return getattr(sampler, "num_drawable", num_classes) < num_classes
    pools = (part for part in sampler.modules() if isinstance(part, PoolSampler))
    return all(pool.log_q is not None for pool in pools)
