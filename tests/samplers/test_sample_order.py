"""LogUniformSampler(order=): Zipf's law for classes whose ids are not sorted by frequency."""

from __future__ import annotations

import copy

import pytest
import torch

import sampled_softmax_cuda as ssc
from helpers.samplers import parts

C, S = 50, 12


def make() -> tuple[ssc.LogUniformSampler, torch.Tensor]:
    order = torch.randperm(C)
    return ssc.LogUniformSampler(C, order=order), order


def test_probabilities_follow_the_order(either: str) -> None:
    sampler, order = make()
    ranks = ssc.LogUniformSampler(C).log_prob(torch.arange(C))
    torch.testing.assert_close(sampler.log_prob(order), ranks)
    n = sampler.log_expected_count(order, S, replacement=False)
    by_rank = ssc.LogUniformSampler(C).log_expected_count(torch.arange(C), S, replacement=False)
    torch.testing.assert_close(n, by_rank, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("replacement", [True, False])
def test_draws_have_these_frequencies(device: str, replacement: bool) -> None:
    sampler, order = make()
    target = torch.arange(5)
    draws = 400
    counts = torch.zeros(C)
    for _ in range(draws):
        ids = sampler.sample(target, S, replacement=replacement).ids
        counts += torch.bincount(ids, minlength=C)
    n = sampler.log_expected_count(torch.arange(C), S, replacement=replacement).exp()
    deviation = (counts - draws * n).abs() / (draws * n).sqrt()
    assert float(deviation.max()) < 5
    likeliest = int(order[0])
    assert counts[likeliest] == counts.max()


def test_keyed_draws_are_the_same(device: str) -> None:
    sampler, _ = make()
    target = torch.arange(7)
    g = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    rows = sampler.sample(target, S, per_row=True, generator=g[0])
    keyed = sampler.sample_keyed(target, S, generator=g[1]).materialize()
    for ours, theirs in zip(parts(rows), parts(keyed), strict=True):
        assert torch.equal(ours, theirs)


def test_the_state_dict_is_empty_unless_asked_for() -> None:
    sampler, order = make()
    assert not sampler.state_dict()
    copied = copy.deepcopy(sampler)
    assert torch.equal(copied.log_prob(order), sampler.log_prob(order))
    kept = ssc.LogUniformSampler(C, order=order, persistent=True)
    other = ssc.LogUniformSampler(C, order=torch.arange(C), persistent=True)
    other.load_state_dict(kept.state_dict())
    assert torch.equal(other.log_prob(order), sampler.log_prob(order))


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (torch.arange(C - 1), r"order must be \[C=50\], every class once"),
        (torch.zeros(C, dtype=torch.int64), r"order must hold every class in \[0, C=50\) once"),
        (torch.arange(1, C + 1), r"order must hold every class in \[0, C=50\) once: it has 49"),
        (torch.arange(C).reshape(5, 10), r"order must be \[C=50\]"),
    ],
)
def test_an_order_that_is_none(order: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=rf"LogUniformSampler: {message}"):
        ssc.LogUniformSampler(C, order=order)


def test_an_order_of_another_type() -> None:
    with pytest.raises(TypeError, match=r"order must be int64, got torch.float32"):
        ssc.LogUniformSampler(C, order=torch.arange(C).float())
