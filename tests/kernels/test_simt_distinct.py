"""Draws without replacement by csrc/cuda, run by csrc/simt: the ids and counts of the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sampled_softmax_cuda as ssc
from helpers.samplers import KINDS, key, make_sampler, zipf
from helpers.simt_bench import SCHEDULES, Bench, proposal_arguments, require, sorted_arrivals
from sampled_softmax_cuda.ops import sample as ops
from sampled_softmax_cuda.proposals import Method

pytestmark = pytest.mark.usefixtures("executor", "native")


def distinct(
    bench: Bench, kind: str, sampler: ssc.Sampler, a_key: Tensor, n: int
) -> tuple[Tensor, Tensor]:
    size = bench.buffer("bytes", torch.tensor([-7]), "out")
    bench.call("distinct_bytes", n, size)
    assert 0 < int(size) <= 145 * n + (66 << 10)
    # The contents of a workspace beforehand must not matter.
    workspace = bench.buffer("workspace", torch.full((int(size),), 0xA5, dtype=torch.uint8), "out")
    ids = bench.buffer("ids", torch.full((n,), -7), "out")
    num_draws = bench.buffer("num_draws", torch.tensor(-7), "out")
    bench.buffer("key", a_key, "in")
    arguments = proposal_arguments(bench, kind, sampler)
    bench.call(f"distinct_{kind}", *arguments, a_key, n, ids, num_draws, workspace)
    return ids, num_draws


def assert_as_on_the_cpu(
    bench: Bench, kind: str, sampler: ssc.Sampler, a_key: Tensor, n: int
) -> int:
    """Returns the number of draws."""
    ids, num_draws, _, _ = ops.sample(
        sampler._proposal(), a_key, a_key[:0], n, Method.DISTINCT, None
    )
    got_ids, got_draws = distinct(bench, kind, sampler, a_key, n)
    assert torch.equal(got_ids, ids)
    assert torch.equal(got_draws, num_draws)
    return int(num_draws)


@pytest.mark.parametrize("kind", KINDS)
def test_many_keys(kind: str) -> None:
    """One block's search, whose rounds are of 2048 draws."""
    require("plain")
    bench = Bench("plain")
    for num_classes, n in [(1, 1), (2, 2), (3, 2), (40, 39), (1000, 150), (1000, 900), (10**5, 64)]:
        sampler = make_sampler(kind, num_classes)
        for seed in range(6):
            assert_as_on_the_cpu(bench, kind, sampler, key(seed, 2**40 * seed - 1), n)


@pytest.mark.parametrize("kind", ["uniform", "log_uniform"])
def test_numbers_of_classes(kind: str) -> None:
    require("plain")
    for num_classes in (2**24 + 3, 2**31 + 5, 2**32, 2**40):
        sampler = make_sampler(kind, num_classes)
        assert_as_on_the_cpu(Bench("plain"), kind, sampler, key(7, 1), 3000)


# Draws of the rounds by all blocks, for 9000 samples: 2 x 18432. Then one block goes on.
LARGE = 9000
IN_ROUNDS = 18432


@pytest.mark.parametrize(
    ("kind", "num_classes", "draws"),
    [
        ("uniform", 2**40, range(LARGE, IN_ROUNDS)),  # the second round has nothing to do
        ("log_uniform", 10**5, range(IN_ROUNDS, 2 * IN_ROUNDS)),
        ("weighted", 20000, range(IN_ROUNDS, 2 * IN_ROUNDS)),
        ("uniform", 9100, range(2 * IN_ROUNDS, 10**6)),
        ("log_uniform", 10**4, range(2 * IN_ROUNDS, 10**6)),
    ],
)
def test_large_samples(kind: str, num_classes: int, draws: range) -> None:
    require("plain")
    sampler = make_sampler(kind, num_classes)
    for seed in range(3):
        count = assert_as_on_the_cpu(Bench("plain"), kind, sampler, key(seed, -3), LARGE)
        assert count in draws


def test_at_the_change_from_one_block_to_many() -> None:
    require("plain")
    sampler = ssc.UniformSampler(10**6)
    for n in (8191, 8192, 8193):
        assert_as_on_the_cpu(Bench("plain"), "uniform", sampler, key(n), n)


@pytest.mark.parametrize("variant", ["plain", "checked"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules(variant: str, schedule: str) -> None:
    """Races between blocks and threads, for an id of most draws and others of one each."""
    require(variant)
    bench = Bench(variant, schedule=schedule, seed=5)
    assert_as_on_the_cpu(bench, "log_uniform", ssc.LogUniformSampler(300), key(2, 9), 250)
    weights = torch.cat((torch.tensor([3e4]), torch.ones(40000)))
    assert_as_on_the_cpu(bench, "weighted", ssc.WeightedSampler(weights), key(4), LARGE)


def test_weights_of_zero() -> None:
    require("plain")
    weights = zipf(400)
    weights[torch.arange(400) % 3 != 1] = 0.0
    sampler = ssc.WeightedSampler(weights)
    assert sampler.num_drawable == 133
    for n in (1, 100, 133):
        assert_as_on_the_cpu(Bench("plain"), "weighted", sampler, key(n, 2), n)


def test_no_samples() -> None:
    require("checked")
    assert assert_as_on_the_cpu(Bench("checked"), "uniform", ssc.UniformSampler(5), key(1), 0) == 0


def test_more_samples_than_there_are_classes_to_draw() -> None:
    """A search without end would hang the GPU: what is missing is -1, of which losses are NaN."""
    require("plain")
    sampler = ssc.WeightedSampler(torch.tensor([0.0, 1.0, 0.0, 2.0]))
    ids, num_draws = distinct(Bench("plain"), "weighted", sampler, key(1), 3)
    assert sorted(ids.tolist()) == [-1, 1, 3]
    assert int(ids[2]) == int(num_draws) == -1


def race(
    bench: Bench, kind: str, sampler: ssc.Sampler, a_key: Tensor, n: int
) -> tuple[Tensor, Tensor]:
    bench.buffer("key", a_key, "in")
    drawn = (*proposal_arguments(bench, kind, sampler), a_key)
    rising, arrivals = sorted_arrivals(bench, kind, drawn, -1, 1, None)
    ids = bench.buffer("ids", torch.full((n,), -7), "out")
    num_draws = bench.buffer("num_draws", torch.tensor(-7), "out")
    bench.call("first_arrivals", rising, arrivals, n, ids, num_draws)
    return ids, num_draws


@pytest.mark.parametrize("variant", ["plain", "checked"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_race(variant: str, kind: str) -> None:
    require(variant)
    for num_classes, n in [(1, 1), (2, 1), (200, 150), (513, 513), (3001, 2990)]:
        sampler = make_sampler(kind, num_classes)
        for seed in range(3):
            a_key = key(seed, 2**62 + seed)
            bench = Bench(variant, schedule=SCHEDULES[seed])
            ids, draws, _, _ = ops.sample(
                sampler._proposal(), a_key, a_key[:0], n, Method.RACE, None
            )
            got_ids, got_draws = race(bench, kind, sampler, a_key, n)
            assert torch.equal(got_ids, ids)
            assert torch.equal(got_draws, draws)


def test_the_race_with_weights_of_zero() -> None:
    """Classes that never arrive come last, and an infinite time counts as 2^62 draws."""
    require("plain")
    weights = zipf(400, 3.0)
    weights[::3] = 0.0
    sampler = ssc.WeightedSampler(weights)
    for n in (200, sampler.num_drawable, sampler.num_drawable + 1):
        ids, draws, _, _ = ops.sample(sampler._proposal(), key(n), key(0)[:0], n, Method.RACE, None)
        got_ids, got_draws = race(Bench("plain"), "weighted", sampler, key(n), n)
        assert torch.equal(got_ids, ids)
        assert torch.equal(got_draws, draws)
        assert (weights[ids] > 0).all() == (n <= sampler.num_drawable) == (draws < 2**62)
