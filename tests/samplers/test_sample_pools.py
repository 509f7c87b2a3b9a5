"""InBatchSampler and QueueSampler: their counts, their estimates, their masks, their state."""

from __future__ import annotations

import itertools
import math
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import sampled_softmax_cuda as ssc
from helpers.samplers import assert_chi_square, parts, zipf

Q = [0.5, 0.3, 0.2]
Z = [0.3, -1.0, 0.8]  # logits of the three classes


def row_estimate(samples: ssc.Samples, row_target: int) -> float:
    """Sum over the samples that are no hits of exp(z) / n."""
    assert samples.log_expected_count is not None
    kept = samples.ids != row_target
    z = torch.tensor(Z, dtype=torch.float64)[samples.ids]
    return float((z - samples.log_expected_count.double()).exp()[kept].sum())


@pytest.mark.parametrize("replacement", [True, False])
def test_every_row_sees_an_unbiased_estimate(device: str, replacement: bool) -> None:
    # Over all 3^3 batches that a row of target t can be in: E sum exp(z) / n = sum over k != t.
    sampler = ssc.InBatchSampler(ssc.WeightedSampler(torch.tensor(Q, dtype=torch.float64)))
    for t in range(3):
        mean = 0.0
        for others in itertools.product(range(3), repeat=3):
            batch = torch.tensor([t, *others])
            samples = sampler.sample(batch, 4, replacement=replacement)
            mean += math.prod(Q[k] for k in others) * row_estimate(samples, t)
        exact = sum(math.exp(z) for z in Z) - math.exp(Z[t])
        assert math.isclose(mean, exact, rel_tol=1e-6)


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("num_chosen", [1, 3, 5])
def test_counts_of_a_random_part_of_the_batch(
    either: str, replacement: bool, num_chosen: int
) -> None:
    # Without log q, n is the mean of what all choices of num_chosen of the five targets hold.
    batch = [4, 1, 4, 4, 0]
    sampler = ssc.InBatchSampler(num_classes=6)
    samples = sampler.sample(torch.tensor(batch), num_chosen, replacement=replacement)
    assert samples.target_log_expected_count is not None
    choices = list(itertools.combinations(batch, num_chosen))
    for k, got in zip(batch, samples.target_log_expected_count.double().exp(), strict=True):
        in_all = [c.count(k) if replacement else int(k in c) for c in choices]
        assert math.isclose(float(got), np.mean(in_all), rel_tol=1e-6)


def test_a_part_of_the_batch_is_a_random_one(either: str) -> None:
    batch = torch.tensor([5, 7, -100, 9, 11])
    sampler = ssc.InBatchSampler()
    counts = dict.fromkeys(itertools.permutations([5, 7, 9, 11], 2), 0)
    generator = torch.Generator().manual_seed(3)
    for _ in range(600):
        samples = sampler.sample(batch, 2, generator=generator)
        assert samples.log_expected_count is not None
        assert bool(samples.log_expected_count.isfinite().all())  # padding would come last
        counts[tuple(samples.ids.tolist())] += 1
    assert_chi_square(list(counts.values()), [1 / 12] * 12)


def test_the_whole_batch_takes_no_random_numbers(either: str) -> None:
    state = torch.get_rng_state()
    ssc.InBatchSampler().sample(torch.tensor([1, 2]), 8)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("ignore_index", [-100, 2])
def test_padding_is_masked_and_touches_no_other_row(device: str, ignore_index: int) -> None:
    batch = torch.tensor([[3, ignore_index], [ignore_index, 5], [3, 1]])
    sampler = ssc.InBatchSampler(ssc.UniformSampler(6), num_classes=6, ignore_index=ignore_index)
    ids, log_n, target_log_n = parts(sampler.sample(batch, 10))
    assert ids.tolist() == [3, 5, 5, 5, 3, 1]
    assert (log_n == torch.inf).tolist() == [False, True, True, False, False, False]
    assert log_n.isfinite().sum() == 4
    assert torch.allclose(log_n[log_n.isfinite()].exp(), torch.tensor(3 / 6))
    assert torch.allclose(target_log_n[batch != ignore_index].exp(), torch.tensor(3 / 6))
    ids, log_n, _ = parts(sampler.sample(batch, 10, replacement=False))
    assert sorted(ids[log_n.isfinite()].tolist()) == [1, 3, 5]


@pytest.mark.parametrize("batch", [[], [-100], [-100, -100], [2]])
def test_batches_without_negatives_have_loss_zero(device: str, batch: list[int]) -> None:
    target = torch.tensor(batch, dtype=torch.int64)
    h, weight = torch.randn(len(batch), 3), torch.randn(5, 3, requires_grad=True)
    for sampler in (
        ssc.InBatchSampler(),
        ssc.InBatchSampler(ssc.LogUniformSampler(5)),
        ssc.QueueSampler(4),
    ):
        for replacement in (True, False):
            samples = sampler.eval().sample(target, 3, replacement=replacement)
            loss = ssc.sampled_softmax_loss(h, weight, target, samples)
            (grad,) = torch.autograd.grad(loss, weight)
            assert float(loss.detach()) == 0
            assert float(grad.abs().max()) == 0


def test_a_class_that_cannot_be_there_counts_once(either: str) -> None:
    # Its log n would be -inf, and its loss NaN.
    never = ssc.WeightedSampler(torch.tensor([1.0, 0.0, 3.0]))
    target = torch.tensor([1, 2, 2])
    _, log_n, target_log_n = parts(ssc.InBatchSampler(never).sample(target, 3))
    for counts in (log_n, target_log_n):
        assert torch.allclose(counts.exp(), torch.tensor([1.0, 1.5, 1.5]))
    mixed = ssc.MixedSampler([never, never])
    assert torch.allclose(
        mixed.sample(target, 4).target_log_expected_count.exp(), torch.tensor([1.0, 3.0, 3.0])
    )


def composed(h: Tensor, weight: Tensor, target: Tensor, log_q: Tensor) -> Tensor:
    """In-batch softmax as it is written elsewhere: [B, B] logits - log q, hits masked."""
    counted = target >= 0
    safe = torch.where(counted, target, 0)
    logits = h @ weight[safe].T - log_q[safe]
    row = torch.arange(len(target))
    own = row == row[:, None]
    hit = (target == target[:, None]) & ~own
    logits = logits.masked_fill((hit | ~counted) & ~own, -torch.inf)
    return F.cross_entropy(logits[counted], row[counted])


def test_the_in_batch_softmax_with_its_gradients(device: str) -> None:
    torch.manual_seed(4)
    target = torch.randint(7, (20,))
    target[[3, 11]] = -100
    h = torch.randn(20, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    q = ssc.WeightedSampler(zipf(7))
    samples = ssc.InBatchSampler(q).sample(target, 20)
    loss = ssc.sampled_softmax_loss(h, weight, target, samples)
    expected = composed(h, weight, target, torch.log(zipf(7) / zipf(7).sum()))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for ours, theirs in zip(
        torch.autograd.grad(loss, (h, weight)),
        torch.autograd.grad(expected, (h, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("sizes", [[1, 2, 1, 3, 1], [5, 6, 4], [13, 2], [0, 4, 7]])
def test_the_queue_keeps_the_last_ids(sizes: list[int]) -> None:
    queue, model = ssc.QueueSampler(5, ignore_index=4), deque[int](maxlen=5)
    generator = torch.Generator().manual_seed(1)
    for size in sizes:
        target = torch.randint(-2, 9, (size,), generator=generator)
        queue.update(target)
        model.extend(k for k in target.tolist() if k >= 0 and k != 4)
        samples = queue.eval().sample(torch.tensor([-1]), 100)
        assert samples.log_expected_count is not None
        there = samples.log_expected_count < torch.inf
        assert sorted(samples.ids[there].tolist()) == sorted(model)
        for k, log_n in zip(samples.ids[there], samples.log_expected_count[there], strict=True):
            assert math.isclose(float(log_n.exp()), model.count(int(k)), rel_tol=1e-6)


def test_the_queue_grows_in_training_only() -> None:
    queue = ssc.QueueSampler(8, ssc.UniformSampler(10))
    first, second = torch.tensor([1, 2]), torch.tensor([3])
    assert queue.sample(first, 20).ids.numel() == 10
    ids, log_n, target_log_n = parts(queue.sample(second, 20))
    assert ids[log_n < torch.inf].tolist() == [3, 1, 2]
    assert torch.allclose(target_log_n.exp(), torch.tensor(0.2))  # two draws besides its own
    queue.eval()
    for _ in range(2):
        ids, log_n, _ = parts(queue.sample(first, 20))
        assert ids[log_n < torch.inf].tolist() == [1, 2, 1, 2, 3]
    quiet = ssc.QueueSampler(8, update_on_sample=False)
    quiet.sample(first, 4)
    assert int(quiet.num_pushed) == 0


def test_the_queue_is_in_the_state_dict() -> None:
    queue = ssc.QueueSampler(3)
    queue.update(torch.arange(5))
    other = ssc.QueueSampler(3)
    other.load_state_dict(queue.state_dict())
    for q in (queue, other):
        q.update(torch.tensor([9]))
    for name, tensor in queue.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


@pytest.mark.parametrize(
    "make",
    [
        lambda: ssc.InBatchSampler(),
        lambda: ssc.InBatchSampler(ssc.LogUniformSampler(50)),
        lambda: ssc.QueueSampler(16),
        lambda: ssc.MixedSampler([ssc.InBatchSampler(), ssc.LogUniformSampler(50)]),
    ],
    ids=["in-batch", "in-batch, log q", "queue", "mixed"],
)
def test_as_the_sampler_of_a_module(device: str, make: Any) -> None:
    torch.manual_seed(2)
    head = ssc.SampledSoftmaxLoss(6, 50, 24, sampler=make(), sparse_grad=True)
    h, target = torch.randn(16, 6, requires_grad=True), torch.randint(50, (16,))
    target[3] = -100
    for _ in range(2):  # the second batch finds a queue that is not empty
        head.zero_grad()
        loss = head(h, target)
        loss.backward()
        assert float(loss.detach()) > 0
        assert bool(head.weight.grad.coalesce().values().isfinite().all())
    assert torch.isfinite(head.eval()(h, target))


@pytest.mark.parametrize("num_samples", [3, 64])
@pytest.mark.parametrize("kind", ["in-batch", "queue", "mixed"])
def test_compiled(native: None, kind: str, num_samples: int) -> None:
    torch.compiler.reset()

    def make() -> ssc.Sampler:
        if kind == "in-batch":
            return ssc.InBatchSampler(ssc.WeightedSampler(zipf(50)))
        if kind == "queue":
            return ssc.QueueSampler(7)
        return ssc.MixedSampler([ssc.QueueSampler(7), ssc.LogUniformSampler(50)], [2, 1])

    eager, traced = make(), make()

    def draw(target: Tensor) -> ssc.Samples:
        return traced.sample(target, num_samples, replacement=False)

    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        target = torch.randint(50, (5, 2), generator=torch.Generator().manual_seed(seed))
        torch.manual_seed(seed)
        got = compiled(target)
        torch.manual_seed(seed)
        expected = eager.sample(target, num_samples, replacement=False)
        for a, b in zip(parts(got), parts(expected), strict=True):
            assert torch.equal(a, b)


def test_log_q_is_what_log_prob_gives() -> None:
    weighted, ids = ssc.WeightedSampler(zipf(9)), torch.arange(9)
    for sampler in (ssc.InBatchSampler(weighted), ssc.QueueSampler(4, weighted)):
        assert torch.equal(sampler.log_prob(ids), weighted.log_prob(ids))
        for replacement in (True, False):
            n = sampler.log_expected_count(ids, 6, replacement=replacement).double().exp()
            q = zipf(9) / zipf(9).sum()
            torch.testing.assert_close(
                n, 6 * q if replacement else 1 - (1 - q) ** 6, rtol=1e-6, atol=0
            )


def test_bad_arguments() -> None:
    target = torch.tensor([1])
    known = ssc.UniformSampler(5)
    cases: list[tuple[type[Exception], str, Any]] = [
        (TypeError, r"log_q must be a Sampler.*got Tensor", lambda: ssc.InBatchSampler(zipf(3))),
        (
            ValueError,
            r"num_classes must be that of log_q, 5, or None, got 6",
            lambda: ssc.InBatchSampler(known, num_classes=6),
        ),
        (TypeError, "ignore_index must be an int", lambda: ssc.InBatchSampler(ignore_index=1.0)),
        (ValueError, "capacity must be at least 1, got 0", lambda: ssc.QueueSampler(0)),
        (TypeError, "capacity must be an int, got float", lambda: ssc.QueueSampler(2.0)),
        (
            ValueError,
            "per_row=True is not possible",
            lambda: ssc.InBatchSampler().sample(target, 1, per_row=True),
        ),
        (
            ValueError,
            "sample: exclude is not possible",
            lambda: ssc.InBatchSampler().sample(target, 1, exclude=target),
        ),
        (
            ValueError,
            r"InBatchSampler.draw: a draw from a key alone is not possible",
            lambda: ssc.InBatchSampler().draw(target, 1),
        ),
        (ValueError, "log_prob needs log_q=", lambda: ssc.InBatchSampler().log_prob(target)),
        (
            ValueError,
            "log_expected_count needs log_q=",
            lambda: ssc.QueueSampler(2).log_expected_count(target, 1),
        ),
        (
            ValueError,
            "num_samples must be at least 1, got 0",
            lambda: ssc.InBatchSampler().sample(target, 0),
        ),
        (
            TypeError,
            "target must be int64",
            lambda: ssc.QueueSampler(2).update(torch.ones(2)),
        ),
        (
            ValueError,
            r"SampledSoftmaxLoss: sampler must draw from num_classes=4",
            lambda: ssc.SampledSoftmaxLoss(2, 4, 2, sampler=ssc.InBatchSampler(known)),
        ),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()
