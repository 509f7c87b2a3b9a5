"""StreamingSampler: counts and tables, intervals, state, several processes."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

import sampled_softmax_cuda as ssc
from helpers.samplers import key, parts
from helpers.streaming_process import zipf_stream
from sampled_softmax_cuda.samplers._stream import CountedStream, IntervalStream


def interval_stream(sampler: ssc.StreamingSampler) -> IntervalStream:
    assert isinstance(sampler.stream, IntervalStream)
    return sampler.stream


# --- counts ---------------------------------------------------------------------------------------


def test_counts_start_at_one_and_add_up(either: str) -> None:
    sampler = ssc.StreamingSampler(6, ignore_index=5)
    targets = torch.tensor([[0, 3, 3], [-100, 5, 6], [3, 1, -1]])
    sampler.update(targets)
    assert sampler.counts.tolist() == [2, 2, 1, 4, 1, 1]
    expected = np.log(np.array([2, 2, 1, 4, 1, 1]) / 11)
    got = sampler.log_prob(torch.arange(6)).double().numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("replacement", [True, False])
def test_the_correction_is_by_the_table_that_was_drawn_from(
    backend: str, replacement: bool
) -> None:
    sampler = ssc.StreamingSampler(40, staleness=1.0)
    sampler.update(torch.arange(20))  # half of the total of 40: not enough for a new table
    snapshot = ssc.UniformSampler(40)
    target = torch.arange(40)
    torch.manual_seed(1)
    got = sampler.sample(target, 12, replacement=replacement)
    expected = snapshot.log_expected_count(target, 12, replacement=replacement)
    torch.testing.assert_close(got.target_log_expected_count, expected)
    table = sampler.stream.table.table.clone()
    sampler.update(torch.arange(21))  # 41 > 40
    assert torch.equal(sampler.stream.table.table, table)  # a step may not have gone backward yet
    torch.manual_seed(1)
    got = sampler.sample(target, 12, replacement=replacement)
    torch.manual_seed(1)
    fresh = ssc.WeightedSampler(sampler.counts).sample(target, 12, replacement=replacement)
    for a, b in zip(parts(got), parts(fresh), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("staleness", [0.0, 0.05, 0.5])
def test_the_table_is_close_behind_and_seldom_built(
    native: None, monkeypatch: pytest.MonkeyPatch, staleness: float
) -> None:
    num_classes, steps, batch = 1000, 200, 100
    sampler, stream = ssc.StreamingSampler(num_classes, staleness=staleness), zipf_stream(1000, 1)
    builds = 0
    build = sampler.stream.rebuild

    def counted() -> None:
        nonlocal builds
        builds += 1
        build()

    monkeypatch.setattr(sampler.stream, "rebuild", counted)
    ids = torch.arange(num_classes)
    for _ in range(steps):
        sampler.update(stream(batch))
        drawn = sampler.log_expected_count(ids, 1).double().exp()
        now = sampler.log_prob(ids).double().exp()
        assert 0.5 * float((drawn - now).abs().sum()) <= staleness / (1 + staleness) + 1e-6
    growth = (num_classes + steps * batch) / num_classes
    most = steps if staleness == 0 else math.log(growth) / math.log1p(staleness) + 1
    assert 0 < builds <= most


def test_the_targets_of_a_batch_count_after_its_sample(either: str) -> None:
    # TensorFlow's learned unigram: a sample does not know the targets that it is drawn for.
    sampler = ssc.StreamingSampler(4, update_on_sample=True, staleness=0.0)
    target = torch.tensor([1, 1, 1, 1])
    for counts in ([1, 1, 1, 1], [1, 5, 1, 1]):
        n = sampler.sample(target, 1).target_log_expected_count
        assert n is not None
        torch.testing.assert_close(n[0].exp(), torch.tensor(counts[1] / sum(counts)))
    assert sampler.counts.tolist() == [1, 9, 1, 1]
    sampler.eval().sample(target, 1)
    assert sampler.counts.tolist() == [1, 9, 1, 1]


def test_a_mixture_updates_a_shared_sampler_once(either: str) -> None:
    stream = ssc.StreamingSampler(9, update_on_sample=True)
    mixed = ssc.MixedSampler([stream, ssc.InBatchSampler(stream)])
    target = torch.tensor([2, 7])
    n = mixed.sample(target, 5).target_log_expected_count
    assert n is not None  # three draws from the table, two targets of which one is its own
    torch.testing.assert_close(n.exp(), torch.full((2,), 3 / 9 + 1 / 9))
    assert stream.counts.tolist() == [1, 1, 2, 1, 1, 1, 1, 2, 1]


def test_a_resumed_run_goes_on_as_if_nothing_had_happened(either: str) -> None:
    draw = zipf_stream(50, 2)
    batches = [draw(7) for _ in range(20)]
    whole = ssc.StreamingSampler(50, staleness=0.2)
    for batch in batches[:9]:
        whole.update(batch)
    state = copy.deepcopy(whole.state_dict())
    resumed = ssc.StreamingSampler(50, staleness=0.2)
    resumed.sample(batches[0], 30, replacement=False)  # its plan is not that of the state
    resumed.load_state_dict(state)
    for step, batch in enumerate(batches[9:]):
        drawn = []
        for sampler in (whole, resumed):
            torch.manual_seed(step)
            drawn.append(sampler.sample(batch, 30, replacement=False))
            sampler.update(batch)
        for a, b in zip(*map(parts, drawn), strict=True):
            assert torch.equal(a, b)
    for sampler in (whole, copy.deepcopy(whole)):
        for name, tensor in sampler.state_dict().items():
            assert torch.equal(tensor, resumed.state_dict()[name])


@pytest.mark.parametrize("rebuild", [True, False])
def test_compiled_updates_count(native: None, rebuild: bool) -> None:
    torch.compiler.reset()
    sampler = ssc.StreamingSampler(10, update_on_sample=True, staleness=0.0)
    compiled = torch.compile(
        lambda target: sampler.sample(target, 4), fullgraph=True, backend="aot_eager"
    )
    for _ in range(3):
        compiled(torch.tensor([3, -100]))
    assert sampler.counts.tolist() == [1, 1, 1, 4, 1, 1, 1, 1, 1, 1]
    ids = torch.arange(10)
    assert isinstance(sampler.stream, CountedStream)
    first_table = ssc.UniformSampler(10).log_prob(ids)
    torch.testing.assert_close(sampler.stream.table.log_prob(ids), first_table)
    if rebuild:
        sampler.rebuild()
        torch.testing.assert_close(sampler.stream.table.log_prob(ids), sampler.log_prob(ids))
    # A draw outside the graph sees what the graph has counted.
    torch.testing.assert_close(sampler.log_expected_count(ids, 1), sampler.log_prob(ids))


# --- intervals ------------------------------------------------------------------------------------


def test_the_recurrence_of_each_bucket() -> None:
    # Against a loop over buckets; many collisions, several hits in a batch, and padding.
    rate, sampler = (
        0.3,
        ssc.StreamingSampler(mode="interval", num_buckets=5, num_hashes=2, rate=0.3),
    )
    stream = interval_stream(sampler)
    model = [[0, 0, 0.0] for _ in range(10)]  # hits, A, B
    t = 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        batch = torch.randint(0, 12, (4,), generator=generator) * 10**15
        batch[0] = -1
        slots = stream._slots(batch[1:])
        assert ((slots[0] < 5) & (slots[1] >= 5) & (slots[1] < 10)).all()
        sampler.update(batch)
        t += 3
        for b in set(slots.flatten().tolist()):
            c = int((slots == b).sum())
            hits, last, gap = model[b]
            step = max(c / (hits + c), 1 - (1 - rate) ** c)
            model[b] = [hits + c, t, gap + step * ((t - last) / c - gap)]
    expected = np.array(model)
    np.testing.assert_array_equal(stream.hits[:10].numpy(), expected[:, 0])
    np.testing.assert_array_equal(stream.last[:10].numpy(), expected[:, 1])
    np.testing.assert_allclose(stream._gap()[:10].numpy(), expected[:, 2], rtol=1e-12)
    ids = torch.arange(12) * 10**15
    largest = np.maximum(*expected[:, 2][stream._slots(ids).numpy()])
    got = sampler.log_prob(ids.view(3, 4)).flatten().double().exp().numpy()
    np.testing.assert_allclose(got, 1 / np.maximum(largest, 1), rtol=1e-6)


def fed(num_steps: int, **options: Any) -> tuple[ssc.StreamingSampler, np.ndarray]:
    """An interval sampler after num_steps batches of 64 of a Zipf stream of 500 odd ids, and its
    q of each over the true one."""
    sampler = ssc.StreamingSampler(mode="interval", **options)
    draw = zipf_stream(500, 4)
    for _ in range(num_steps):
        sampler.update(draw(64) * 7_919_000_000_007)
    q = ssc.LogUniformSampler(500).log_prob(torch.arange(500)).double()
    log_ratio = sampler.log_prob(torch.arange(500) * 7_919_000_000_007).double() - q
    return sampler, log_ratio.exp().numpy()


def test_intervals_find_the_frequencies() -> None:
    _, ratio = fed(1500)
    # A mean of about 1 / rate = 100 gaps has a relative deviation of a tenth or less.
    assert abs(np.median(ratio[:300]) - 1) < 0.05
    assert np.percentile(ratio[:300], 5) > 0.75
    assert np.percentile(ratio[:300], 95) < 1.35
    assert ratio[0] == pytest.approx(1, rel=0.2)  # ten hits in every batch


def test_more_hash_functions_undo_collisions() -> None:
    # 500 classes in 1000 buckets: a rare class that shares its bucket with a frequent one looks
    # frequent, unless another hash function keeps the two apart.
    one, four = (fed(600, num_buckets=1000, num_hashes=m)[1] for m in (1, 4))
    assert (one[100:] > 3).mean() > 0.15
    assert (four[100:] > 3).mean() < 0.05


def test_intervals_follow_a_change() -> None:
    sampler = ssc.StreamingSampler(mode="interval", rate=0.05)
    for share in (1, 9):  # id 1 first is a tenth of the targets, then nine tenths
        batch = torch.tensor([1] * share + [2] * (10 - share))
        for _ in range(60):
            sampler.update(batch)
        q = sampler.log_prob(torch.tensor([1, 2])).exp()
        torch.testing.assert_close(q, torch.tensor([share / 10, 1 - share / 10]), rtol=0.06, atol=0)


def test_what_was_never_seen_is_rarer_than_all_that_was() -> None:
    sampler = ssc.StreamingSampler(mode="interval")
    assert float(sampler.log_prob(torch.tensor(5))) == 0  # nothing is known
    sampler.update(torch.arange(999))
    assert float(sampler.log_prob(torch.tensor(12345)).exp()) == pytest.approx(1 / 1000)


def test_in_batch_negatives_by_learnt_intervals() -> None:
    # Targets of a Zipf stream, frequencies learnt on the way: the partition function is estimated
    # well by the end, though no list of classes exists anywhere.
    stream = ssc.StreamingSampler(mode="interval", update_on_sample=True)
    sampler = ssc.InBatchSampler(stream)
    draw = zipf_stream(300, 5)
    z = torch.randn(300, generator=torch.Generator().manual_seed(1)).double()
    estimates = []
    for step in range(1200):
        batch = draw(64)
        ids, log_n, _ = parts(sampler.sample(batch, 64))
        if step >= 600:
            estimates.append(float((z[ids] - log_n).exp().sum()))
    mean = np.mean(estimates) * 63 / 64  # no row of this sum leaves out its own target
    assert mean == pytest.approx(float(z.exp().sum()), rel=0.1)
    cast = copy.deepcopy(stream).half()
    assert torch.equal(cast.log_prob(torch.arange(300)), stream.log_prob(torch.arange(300)))


def test_without_a_process_group_sync_does_nothing() -> None:
    for sampler in (ssc.StreamingSampler(5), ssc.StreamingSampler(mode="interval")):
        sampler.update(torch.tensor([1, 2]))
        before = {name: t.clone() for name, t in sampler.state_dict().items()}
        sampler.sync()
        for name, tensor in sampler.state_dict().items():
            assert torch.equal(tensor, before[name])


# --- errors ---------------------------------------------------------------------------------------


def test_bad_arguments() -> None:
    make, target = ssc.StreamingSampler, torch.tensor([1])
    interval = make(mode="interval")
    cases: list[tuple[type[Exception], str, Any]] = [
        (
            ValueError,
            "mode must be 'counts' or 'interval', got 'both'",
            lambda: make(5, mode="both"),
        ),
        (TypeError, "num_classes must be an int, got NoneType", lambda: make()),
        (ValueError, "staleness must be a number >= 0, got -1", lambda: make(5, staleness=-1)),
        (ValueError, r"rate must be in \(0, 1\], got 0", lambda: make(mode="interval", rate=0)),
        (ValueError, "num_buckets must be an int >= 1, got 0", lambda: make(5, num_buckets=0)),
        (TypeError, "num_hashes must be an int, got float", lambda: make(5, num_hashes=1.5)),
        (TypeError, "ignore_index must be an int, got float", lambda: make(5, ignore_index=0.0)),
        (TypeError, "target must be int64", lambda: make(5).update(target.int())),
        (IndexError, r"got 5", lambda: make(5).log_prob(torch.tensor([5]))),
        (
            ValueError,
            "sample is not possible with mode='interval'.*InBatchSampler",
            lambda: interval.sample(target, 1),
        ),
        (ValueError, "not possible with mode='interval'", lambda: interval.draw(key(1), 1)),
        (ValueError, "not possible with mode='interval'", lambda: interval.counts),
        (ValueError, "rebuild is not possible", lambda: interval.rebuild()),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()


def test_tensors_on_another_device_are_refused() -> None:
    sampler = ssc.StreamingSampler(5)
    with pytest.raises(ValueError, match=r"target must be on the sampler's device cpu, got meta"):
        sampler.update(torch.ones(2, dtype=torch.int64, device="meta"))
