"""`ssc.diagnose`: figures that are known beforehand, figures computed twice, and the advice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sampled_softmax_cuda as ssc
from helpers.samplers import parts
from sampled_softmax_cuda.diagnose import _advice, effective_sample_size

B, C, D = 12, 300, 8


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    h, w = torch.randn(B, D, dtype=dtype), torch.randn(C, D, dtype=dtype)
    return h, w, torch.randint(C, (B,)), torch.randn(C, dtype=dtype)


def model(h: Tensor, w: Tensor, t: Tensor, b: Tensor, temperature: float = 1.0) -> np.ndarray:
    """p [B, C] of the exact softmax in float64, the target's set to 0."""
    z = (h.double() @ w.double().T + b.double()) / temperature
    return z.softmax(1).scatter(1, t[:, None], 0.0).numpy()


def test_every_class_once_is_exact(device: str) -> None:
    """Z itself, no variance, the exact gradient, every target hit; then classes of equal weight."""
    h, w, t, b = batch(torch.float64)
    d = ssc.diagnose(h, w, t, ssc.UniformSampler(C), C, bias=b, replacement=False, num_draws=3)
    assert d.partition_bias == pytest.approx(0, abs=1e-6)
    assert d.partition_variance == pytest.approx(0, abs=1e-12)
    assert d.gradient_error == pytest.approx(0, abs=1e-6)
    assert (d.hit_rate, d.distinct_share, d.num_rows) == (1.0, 1.0, B)
    assert d.advice[0] == "exact is cheaper here: C=300, S=300"
    equal = ssc.diagnose(h, 0 * w, t, ssc.UniformSampler(C), C, replacement=False, num_draws=3)
    assert equal.effective_sample_size == pytest.approx(C - 1)


def test_effective_sample_size() -> None:
    weights = torch.tensor([[1.0, 1.0, 2.0], [5.0, 5.0, 5.0], [0.0, 7.0, 0.0], [0.0, 0.0, 0.0]])
    expected = torch.tensor([16 / 6, 3.0, 1.0, 0.0])
    torch.testing.assert_close(effective_sample_size(weights.log()), expected)


@pytest.mark.parametrize("kind", ["uniform", "log-uniform", "weighted"])
def test_the_variance_is_that_of_the_proposal(kind: str) -> None:
    """Measured over many draws, and by the formula, in NumPy: they agree, and so does the table."""
    h, w, t, b = batch()
    p = model(h, w, t, b, 2.0)
    best = np.sqrt((p**2).mean(0))
    q = {
        "uniform": np.full(C, 1 / C),
        "log-uniform": np.log1p(1 / np.arange(1.0, C + 1)) / np.log1p(C),
        "weighted": best / best.sum(),
    }
    samplers = {
        "uniform": ssc.UniformSampler(C),
        "log-uniform": ssc.LogUniformSampler(C),
        "weighted": ssc.WeightedSampler(torch.from_numpy(best)),
    }
    S, rounds = 40, 250
    d = ssc.diagnose(h, w, t, samplers[kind], S, bias=b, temperature=2.0, num_draws=rounds)
    computed = {name: ((p**2 / x).sum(1) - p.sum(1) ** 2).mean() / S for name, x in q.items()}
    assert d.partition_variance == pytest.approx(computed[kind], rel=0.25)
    assert abs(d.partition_bias) < 4 * d.partition_bias_error
    assert d.partition_bias_error < np.sqrt(computed[kind] / rounds) * 1.25
    names = {"weighted": "the best proposal"}
    for name, x in computed.items():
        assert d.deviations[names.get(name, name)] == pytest.approx(np.sqrt(x), rel=1e-4)
    assert min(computed.values()) == computed["weighted"]


def test_shares_and_sizes_of_a_draw(native: None) -> None:
    """Hits, distinct classes and effective size, from the draws themselves."""
    h, w, t, b = batch()
    sampler, S, rounds = ssc.LogUniformSampler(C), 50, 5
    state = torch.get_rng_state()
    draws = [sampler.sample(t, S) for _ in range(rounds)]
    torch.set_rng_state(state)
    d = ssc.diagnose(h, w, t, sampler, S, bias=b, num_draws=rounds)
    z = h.double() @ w.double().T + b.double()
    hit, distinct, size, error = [], [], [], 0.0
    p = model(h, w, t, b)
    exact = p @ w.double().numpy()
    exact -= (p.sum(1)[:, None]) * w.double().numpy()[t]
    for ids, log_n, _ in map(parts, draws):
        hits = ids == t[:, None]
        weights = torch.where(hits, 0.0, (z[:, ids] - log_n.double()).exp()).numpy()
        hit.append(hits.any(1).double().mean())
        distinct.append(ids.unique().numel() / S)
        size.append((weights.sum(1) ** 2 / (weights**2).sum(1)).mean())
        total = weights.sum(1) + z.gather(1, t[:, None])[:, 0].exp().numpy()
        share = weights / total[:, None]
        grad = share @ w.double().numpy()[ids] - share.sum(1)[:, None] * w.double().numpy()[t]
        error += ((grad - exact) ** 2).sum() / rounds
    assert d.hit_rate == pytest.approx(np.mean(hit))
    assert d.distinct_share == pytest.approx(np.mean(distinct))
    assert d.effective_sample_size == pytest.approx(np.mean(size), rel=1e-4)
    assert d.gradient_error == pytest.approx(np.sqrt(error / (exact**2).sum()), rel=1e-3)


def test_classes_that_are_never_drawn() -> None:
    """Their probability is missing from the partition function, exactly that much."""
    h, w, t, b = batch()
    weights = torch.ones(C)
    weights[::3] = 0
    d = ssc.diagnose(
        h, w, t, ssc.WeightedSampler(weights), 200, bias=b, replacement=False, num_draws=4
    )
    missing = model(h, w, t, b)[:, ::3].sum(1).mean()
    assert d.never_drawn == pytest.approx(missing, rel=1e-4)
    # All other classes are drawn, once each.
    assert d.partition_bias == pytest.approx(-missing, rel=1e-4)
    assert any("never draws" in line for line in d.advice)
    assert not any("do not fit" in line for line in d.advice)


def test_ignored_rows_and_shapes_do_not_count() -> None:
    h, w, t, b = batch()
    sampler = ssc.UniformSampler(C)
    arguments: dict[str, Any] = {"bias": b, "num_draws": 3}
    torch.manual_seed(1)
    expected = ssc.diagnose(h[:10], w, t[:10], sampler, 30, **arguments)
    padded = torch.cat((t[:10], torch.full((2,), -1)))
    h[10:] = torch.nan
    torch.manual_seed(1)
    d = ssc.diagnose(
        h.view(3, 4, D), w, padded.view(3, 4), sampler, 30, ignore_index=-1, **arguments
    )
    assert d == expected


def test_the_sampler_stays_as_it_was() -> None:
    h, w, t, b = batch()
    modes = []

    class Watched(ssc.UniformSampler):
        def sample(self, *args: Any, **options: Any) -> ssc.Samples:
            modes.append(self.training)
            return super().sample(*args, **options)

    sampler = Watched(C)
    g = torch.Generator().manual_seed(3)
    first = ssc.diagnose(h, w, t, sampler, 30, bias=b, num_draws=2, generator=g)
    assert modes == [False, False]
    assert sampler.training
    g.manual_seed(3)
    assert first == ssc.diagnose(h, w, t, sampler, 30, bias=b, num_draws=2, generator=g)
    assert h.grad is None and w.grad is None


def test_counts_that_do_not_fit_are_noticed() -> None:
    """Distinct samples that pretend to be independent draws have a Ẑ that is far too large."""
    h, w, t, _ = batch()

    class Wrong(ssc.LogUniformSampler):
        def sample(self, target: Tensor, num_samples: int, **options: Any) -> ssc.Samples:
            drawn = super().sample(target, num_samples, replacement=False)
            count = self.log_expected_count(drawn.ids, num_samples)
            return replace(drawn, log_expected_count=count)

    d = ssc.diagnose(h, 0.1 * w, t, Wrong(C), 100, num_draws=8)
    assert d.partition_bias > 0.2
    assert any("the expected counts do not fit the draws" in line for line in d.advice)


def test_advice() -> None:
    """Each piece of advice where its reason is, and nowhere else."""
    good = ssc.Diagnosis(
        num_classes=10**6,
        num_samples=4096,
        num_rows=B,
        num_draws=16,
        replacement=True,
        effective_sample_size=2000.0,
        hit_rate=0.01,
        distinct_share=0.9,
        partition_bias=0.001,
        partition_bias_error=0.001,
        partition_variance=0.05**2,
        gradient_error=0.1,
        never_drawn=0.0,
        deviations={"uniform": 0.9, "log-uniform": 0.05, "the best proposal": 0.04},
        advice=(),
    )
    assert _advice(good) == ("nothing to change: the partition function deviates by 5 %",)
    (line,) = _advice(good._replace(num_classes=3000, num_samples=2048))
    assert line == "exact is cheaper here: C=3,000, S=2,048"
    (line,) = _advice(good._replace(distinct_share=0.4))
    assert line.startswith("only 40 % of the samples are distinct: replacement=False")
    assert len(_advice(good._replace(distinct_share=0.4, replacement=False))) == 1
    poor = good._replace(effective_sample_size=12.0, partition_variance=0.81)
    assert _advice(poor) == (
        "the effective sample size is 12 of 4,096: the proposal is far from the model's"
        " distribution, and the partition function deviates by 90 %",
        "try a log-uniform proposal: it would deviate by 5 %",
        "or S=331,776 samples, with which it would deviate by 10 %",
    )
    hard = {"uniform": 0.9, "log-uniform": 0.8, "the best proposal": 0.1}
    assert "in-batch targets mixed in" in _advice(poor._replace(deviations=hard))[1]
    report = str(good._replace(advice=_advice(good)))
    for text in (
        "4,096 of 1,000,000 classes with replacement, 12 rows, 16 draws",
        "effective sample size          2,000.0",
        "bias       +0.1 % (standard error 0.1 %)",
        "deviation  5 %",
        "uniform 90 %, log-uniform 5 %, the best proposal 4 %",
        "- nothing to change",
    ):
        assert text in report


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"num_draws": 1}, ValueError, "num_draws must be at least 2, got 1"),
        ({"sampler": "uniform"}, TypeError, "sampler must be a Sampler, got str"),
        ({"target": torch.full((B,), -100)}, ValueError, "target must have a row that is not"),
        ({"target": torch.full((B,), C)}, IndexError, r"target must be in \[0, C=300\).*got 300"),
        ({"sampler": ssc.UniformSampler(10**9)}, IndexError, r"the sampler's ids must be in"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"weight": torch.zeros(C, D + 1)}, ValueError, r"weight must be \[C, D=8\]"),
    ],
    ids=str,
)
def test_errors(changes: dict[str, Any], kind: Any, message: str) -> None:
    h, w, t, b = batch()
    arguments = {"input": h, "weight": w, "target": t, "sampler": ssc.UniformSampler(C)}
    with pytest.raises(kind, match=f"^diagnose: {message}"):
        ssc.diagnose(**{**arguments, "num_samples": 20, "bias": b, **changes})


def zipf_batch(rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A model whose classes are as frequent as their targets: frequencies, and h, w, b."""
    frequency = 1.0 / torch.arange(1.0, C + 1)
    h, w = 0.5 * torch.randn(rows, D), 0.3 * torch.randn(C, D)
    return frequency / frequency.sum(), h, w, frequency.log()


def pools(frequency: Tensor, kind: str) -> ssc.Sampler:
    known = ssc.WeightedSampler(frequency)
    if kind == "in-batch":
        return ssc.InBatchSampler(known)
    if kind == "mixed":
        return ssc.MixedSampler([ssc.InBatchSampler(known), ssc.UniformSampler(C)], [3, 1])
    queue = ssc.QueueSampler(100, known)
    queue.update(torch.multinomial(frequency, 100, replacement=True))
    return queue


@pytest.mark.parametrize("kind", ["in-batch", "queue", "mixed"])
@pytest.mark.parametrize("replacement", [True, False])
def test_a_pool_varies_as_batches_do(native: None, kind: str, replacement: bool) -> None:
    """The deviation of one batch, in the mean, is that over many batches; 0 it never is."""
    rows, S, rounds = 80, 100, 60
    frequency, h, w, b = zipf_batch(rows)
    z = h.double() @ w.double().T + b.double()
    deviations, ratios = [], []
    for _ in range(rounds):
        t = torch.multinomial(frequency, rows, replacement=True)
        sampler = pools(frequency, kind)
        d = ssc.diagnose(h, w, t, sampler, S, bias=b, replacement=replacement, num_draws=8)
        assert d.from_pool
        assert d.partition_variance > 0
        deviations.append(d.partition_variance)
        ids, log_n, _ = parts(sampler.eval().sample(t, S, replacement=replacement))
        terms = (z[:, ids] - log_n.double()).masked_fill(ids == t[:, None], -torch.inf)
        target = z.gather(1, t[:, None])[:, 0].exp()
        ratios.append((terms.logsumexp(1).exp() + target) / z.logsumexp(1).exp())
    truth = float(torch.stack(ratios).var(dim=0).mean()) ** 0.5
    assert np.mean(deviations) ** 0.5 == pytest.approx(truth, rel=0.3)


def test_reports_of_pools(native: None) -> None:
    """Advice that a pool can follow, and the number of samples that it has."""
    frequency, h, w, b = zipf_batch(40)
    t = torch.multinomial(frequency, 40, replacement=True)
    known = ssc.InBatchSampler(ssc.WeightedSampler(frequency))
    d = ssc.diagnose(h, w, t, known, 100, bias=b)
    assert (d.samples_per_draw, d.hit_rate) == (40.0, 1.0)
    assert d.distinct_share == t.unique().numel() / 40
    assert "100 (the pool has 40) of 300 classes" in str(d)
    assert "%, over batches" in str(d)
    assert not any("replacement=False" in line for line in d.advice)
    assert d.partition_bias_error > 0.01
    unknown = ssc.diagnose(h, w, t, ssc.InBatchSampler(), 100, bias=b)
    assert unknown.advice[0].startswith("without log_q every class of the pool weighs the same")
    poor = ssc.diagnose(20 * h, w, t, known, 100, bias=b)
    assert poor.partition_deviation > 0.3
    assert "a QueueSampler of more earlier targets" in poor.advice[-1]
    wrong = ssc.WeightedSampler(frequency.flip(0))
    off = ssc.diagnose(h, 0 * w, t, ssc.InBatchSampler(wrong), 100, bias=b)
    assert any("do not have the frequencies that log_q says" in line for line in off.advice)


def test_a_pool_stays_as_it_was(native: None) -> None:
    frequency, h, w, b = zipf_batch(40)
    t = torch.multinomial(frequency, 40, replacement=True)
    sampler = pools(frequency, "queue")
    before = {name: value.clone() for name, value in sampler.state_dict().items()}
    g = torch.Generator().manual_seed(3)
    first = ssc.diagnose(h, w, t, sampler, 30, bias=b, generator=g)
    for name, value in sampler.state_dict().items():
        assert torch.equal(value, before[name])
    assert first == ssc.diagnose(h, w, t, sampler, 30, bias=b, generator=g.manual_seed(3))
    ids = sampler.sample(t, 140).ids
    assert torch.equal(ids.sort().values, torch.cat((t, before["queue"][:100])).sort().values)


def test_mixtures_that_never_draw_a_class(native: None) -> None:
    h, w, t, b = batch()
    weights = torch.ones(C)
    weights[::3] = 0
    part = ssc.WeightedSampler(weights)
    d = ssc.diagnose(h, w, t, ssc.MixedSampler([part, part]), 50, bias=b, num_draws=2)
    assert d.never_drawn == pytest.approx(model(h, w, t, b)[:, ::3].sum(1).mean(), rel=1e-4)
    d = ssc.diagnose(h, w, t, ssc.MixedSampler([part, ssc.UniformSampler(C)]), 50, num_draws=2)
    assert d.never_drawn == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_model_that_is_not_finite_is_told_so(device: str, bad: float) -> None:
    h, w, t, b = batch()
    w[3, 2] = bad
    d = ssc.diagnose(h, w, t, ssc.UniformSampler(C), 50, bias=b, num_draws=2)
    rows = int((~(h @ w.T + b).logsumexp(1).isfinite()).sum())  # a logit of -inf is a number yet
    assert d.non_finite_rows == rows > 0
    (line,) = d.advice
    assert line.startswith(f"the model's logits are not finite in {rows} of 12 rows: look for")
    h, w, t, b = batch()
    h[5] = bad
    d = ssc.diagnose(h, w, t, ssc.UniformSampler(C), 50, bias=b, num_draws=2)
    assert d.advice[0].startswith("the model's logits are not finite in 1 of 12 rows")
