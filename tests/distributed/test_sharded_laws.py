"""The laws of draws of which every rank makes its own part."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor

import sampled_softmax_cuda as ssc
from helpers.rank_threads import run_ranks
from helpers.samplers import assert_chi_square
from helpers.sharded_draws import drawn_before, weights
from sampled_softmax_cuda.distributed import (
    ClassShard,
    ShardedSampledSoftmaxLoss,
    ShardedWeightedSampler,
)
from sampled_softmax_cuda.samplers.mixed import split_samples


def expected_counts(classes: int, size: int, draw: str, replacement: bool, s: int) -> Tensor:
    """n [C] by the formulas, float64, and independent of the package's."""
    q = (weights(classes) / weights(classes).sum()).numpy()
    if draw == "composed":
        return torch.from_numpy(s * q)
    shard = ClassShard(classes)
    each = -(-classes // size)
    of_rank = [
        shard.class_of(torch.arange(min(classes, r * each), min(classes, (r + 1) * each))).numpy()
        for r in range(size)
    ]
    drawable = [int((q[k] > 0).sum()) for k in of_rank]
    shares = split_samples(
        s, [1.0] * size, [(2**62 if n else 0) if replacement else n for n in drawable]
    )
    n = np.zeros(classes)
    for k, s_r in zip(of_rank, shares, strict=True):
        if s_r == 0:
            continue
        p = q[k] / q[k].sum()
        if replacement:
            n[k] = s_r * p
        elif s_r == (p > 0).sum():
            n[k] = p > 0
        else:
            t = optimize.brentq(lambda t, p=p, m=s_r: -np.expm1(t * np.log1p(-p)).sum() - m, 0, 1e6)
            n[k] = -np.expm1(t * np.log1p(-p))
    return torch.from_numpy(n)


def many_draws(
    rank: int, size: int, classes: int, draw: str, replacement: bool, s: int, times: int
) -> tuple[Tensor, Tensor, Tensor]:
    """How often each class came [times, C], log n [C] of this rank's classes, NaN elsewhere, and
    this rank's part of the estimates of Z [times]."""
    shard = ClassShard(classes)
    sampler = ShardedWeightedSampler(weights(classes)[shard.classes], shard)
    head = ShardedSampledSoftmaxLoss(
        2, classes, s, sampler, draw=draw, replacement=replacement, seed=3
    )
    logits = torch.randn(classes, generator=torch.Generator().manual_seed(0)).double()
    counts, z = torch.zeros(times, classes), torch.zeros(times, dtype=torch.float64)
    log_n = torch.full((classes,), torch.nan)
    for step in range(times):
        drawn = drawn_before(head, torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
        head._step += 1
        ids = shard.class_of(drawn.rows)
        counts[step].index_add_(0, ids, torch.ones(len(ids)))
        assert drawn.log_count is not None and drawn.log_count_of is not None
        z[step] = (logits[ids] - drawn.log_count.double()).exp().sum()
        if step == 0:
            log_n[shard.classes] = drawn.log_count_of(torch.arange(shard.num_rows))
        assert drawn.sizes is not None and drawn.sizes[rank] == len(ids)
        assert sum(drawn.sizes) == s
    return counts, log_n, z


CASES = [("composed", True), ("stratified", True), ("stratified", False)]


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize(("draw", "replacement"), CASES)
def test_classes_come_as_often_as_their_counts_say(size: int, draw: str, replacement: bool) -> None:
    classes, times, s = (37, 800, 16) if replacement else (200, 400, 80)
    parts = run_ranks(size, many_draws, classes, draw, replacement, s, times)
    counts = torch.stack([c for c, _, _ in parts]).sum(0)
    log_n = torch.stack([n for _, n, _ in parts]).nan_to_num(0).sum(0)
    n = expected_counts(classes, size, draw, replacement, s)
    never = n == 0
    assert torch.allclose(log_n.double(), torch.where(never, 1.0, n).log(), atol=1e-5)
    assert float(counts[:, never].sum()) == 0
    if replacement:
        assert_chi_square(counts.sum(0).tolist(), (n / s).tolist())
    else:
        assert float(counts.max()) == 1
        # Inclusion by t differs from the truth by less than the noise of these draws and 2 %.
        deviation = (n * (1 - n) / times).sqrt()
        assert bool(((counts.mean(0) - n).abs() < 4.5 * deviation + 0.02).all())
    logits = torch.randn(classes, generator=torch.Generator().manual_seed(0)).double()
    truth = float(logits[~never].exp().sum())
    z = torch.stack([z for _, _, z in parts]).sum(0)
    error = float(z.std()) / math.sqrt(times)
    assert abs(float(z.mean()) - truth) < 4 * error + (0 if replacement else 0.01 * truth)


def test_composed_draws_have_the_law_of_global_ones() -> None:
    """Two samples of numbers of distinct classes, which depend on all of the joint law."""
    classes, times, s = 37, 1500, 16
    whole = ssc.WeightedSampler(weights(classes))
    alone = [
        len(
            torch.unique(
                whole.sample(torch.tensor([0]), s, generator=torch.Generator().manual_seed(i)).ids
            )
        )
        for i in range(times)
    ]
    parts = run_ranks(4, many_draws, classes, "composed", True, s, times)
    together = (torch.stack([c for c, _, _ in parts]).sum(0) > 0).sum(1)
    a, b = torch.tensor(alone).double(), together.double()
    assert abs(float(a.mean() - b.mean())) < 4 * math.sqrt(float(a.var() + b.var()) / times)
    assert abs(float(a.var() / b.var()) - 1) < 0.16
