"""The CUDA draws, run by csrc/simt: bit for bit the ids of the CPU and of the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sampled_softmax_cuda as ssc
from helpers.backends import use_backend
from helpers.samplers import KINDS, key, make_sampler
from helpers.simt_bench import SCHEDULES, Bench, proposal_arguments, require
from sampled_softmax_cuda.ops import sample as ops

pytestmark = pytest.mark.usefixtures("executor")

SIZES = {
    "uniform": [1, 2, 3, 1000, 2**24 + 3, 2**31 + 5, 2**32, 2**40],
    "log_uniform": [1, 2, 3, 1000, 2**24 + 3, 2**31 + 5, 2**32, 2**40],
    "weighted": [1, 2, 3, 1000, 10**6],
}


def draw(bench: Bench, kind: str, sampler: ssc.Sampler, a_key: Tensor, n: int) -> Tensor:
    ids = bench.buffer("ids", torch.full((n,), -7), "out")
    bench.buffer("key", a_key, "in")
    bench.call(f"draw_{kind}", *proposal_arguments(bench, kind, sampler), a_key, n, ids)
    return ids


def test_a_million_draws_of_each_sampler(native: None) -> None:
    require("plain")
    for kind in KINDS:
        for num_classes in SIZES[kind]:
            sampler = make_sampler(kind, num_classes)
            n = 10**6 // len(SIZES[kind]) + 1
            ids, _ = sampler.draw(key(3, 5), n)
            assert torch.equal(draw(Bench("plain"), kind, sampler, key(3, 5), n), ids)


@pytest.mark.parametrize("variant", ["plain", "checked"])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_the_references(variant: str, kind: str) -> None:
    require(variant)
    sampler = make_sampler(kind, 1000)
    for n in (1, 2, 255, 513, 1030):  # half a block of Philox at the end, and not
        for schedule in SCHEDULES:
            bench = Bench(variant, schedule=schedule)
            for seed, offset in [(0, 0), (-1, 2**63 - 1), (2**62 + 9, -1)]:
                with use_backend("reference"):
                    want, _ = sampler.draw(key(seed, offset), n)
                assert torch.equal(draw(bench, kind, sampler, key(seed, offset), n), want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distinct", [False, True])
def test_log_counts_are_the_cpus(native: None, kind: str, distinct: bool) -> None:
    require("checked")
    bench = Bench("checked")
    sampler = make_sampler(kind, 700)
    # Ids that are no class correct nothing.
    ids = torch.cat((torch.arange(700), torch.tensor([-1, -100, 700, 2**40, -(2**63)])))
    tries = torch.tensor(321.5, dtype=torch.float64) if distinct else None
    want = ops.log_counts(sampler._proposal(), ids, 64, tries)
    got = bench.buffer("log_counts", torch.full(ids.shape, torch.nan), "out")
    bench.call(
        f"log_counts_{kind}",
        *proposal_arguments(bench, kind, sampler),
        *(None if tries is None else bench.buffer("tries", tries, "in"), 64),
        *(bench.buffer("ids", ids, "in"), len(ids), got),
    )
    assert torch.equal(got, want)


def test_writes_of_a_draw_fill_their_sectors() -> None:
    """8 n bytes: 32-byte sectors are written once each, and the key is read by all at once."""
    require("checked")
    bench = Bench("checked", statistics=True)
    n = 4096
    draw(bench, "log_uniform", ssc.LogUniformSampler(10**6), key(1), n)
    stores = [s for s in bench.statistics() if s["kind"] == "global store"]
    assert sum(s["transfers"] for s in stores) == sum(s["ideal"] for s in stores) == 8 * n // 32
