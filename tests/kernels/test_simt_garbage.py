"""The CUDA draws from tables and probabilities of any content, and rows with ids of any value, with
every access watched: the checked build knows which memory is theirs, and test_simt_asan.py runs
this file under AddressSanitizer.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

import sampled_softmax_cuda as ssc
from helpers.garbage import BITS, LARGEST, OUTSIDE, TABLES, C
from helpers.samplers import key
from helpers.simt_bench import Bench, require, sorted_arrivals
from helpers.simt_per_row import Problem, run
from sampled_softmax_cuda.proposals import Method

pytestmark = pytest.mark.usefixtures("native")
VARIANTS = os.environ.get("SSC_SIMT_VARIANTS", "plain,checked").split(",")
S, ROWS = 20, 3


@pytest.fixture(params=VARIANTS)
def bench(request: pytest.FixtureRequest) -> Bench:
    require(request.param)
    return Bench(request.param)


def proposal(bench: Bench, table: Tensor, probabilities: Tensor | None = None) -> list[Any]:
    """The arguments of a launcher, in memory that ends with the last class."""
    if probabilities is None:
        probabilities = torch.full((C,), 1 / C, dtype=torch.float64)
    bench.buffer("table", table, "in")
    bench.buffer("probabilities", probabilities, "in")
    return [table, probabilities, C, bench.buffer("key", key(3, 9), "in")]


def garbage(table: str) -> Tensor:
    return TABLES[table](torch.empty(C, dtype=torch.int64))


def outputs(bench: Bench, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(bench.buffer("out", torch.full(shape, -7), "out") for shape in shapes)


def assert_classes(ids: Tensor, *, none: bool = True) -> None:
    """Ids are classes, or -1 where the table gave none."""
    assert ((ids >= -none) & (ids < C)).all()


@pytest.mark.parametrize("table", TABLES)
def test_draws(bench: Bench, table: str) -> None:
    arguments = proposal(bench, garbage(table))
    (ids,) = outputs(bench, (701,))
    bench.call("draw_weighted", *arguments, 701, ids)
    assert_classes(ids)
    assert bool((ids == -1).any()) == (table != "all -1")
    (own,) = outputs(bench, (ROWS, S))
    counts = bench.buffer("counts", torch.empty(ROWS, S), "out")
    bench.call("draw_rows_weighted", *arguments, 0, ROWS, S, own, counts)
    assert_classes(own)
    assert (counts[own == -1] == 0).all()


@pytest.mark.parametrize("table", [*TABLES, "one class"])
def test_distinct_draws(bench: Bench, table: str) -> None:
    entries = torch.zeros(C, dtype=torch.int64) if table == "one class" else garbage(table)
    arguments = proposal(bench, entries)
    size, ids, draws = outputs(bench, (1,), (S,), ())
    bench.call("distinct_bytes", S, size)
    workspace = bench.buffer("workspace", torch.empty(int(size), dtype=torch.uint8), "out")
    bench.call("distinct_weighted", *arguments, S, ids, draws, workspace)
    assert_classes(ids)
    if table == "one class":
        assert ids.tolist() == [0] + [-1] * (S - 1)
        assert int(draws) == -1


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize("listed", [False, True])
def test_filtered_rows(bench: Bench, method: Method, table: str, listed: bool) -> None:
    arguments = proposal(bench, garbage(table))
    lists = torch.tensor([[3, -1, 3, C], [LARGEST, -LARGEST, 0, 1], [2, 2, 2, 2]])
    exclude = bench.buffer("lists", lists if listed else lists[:, :0].contiguous(), "in")
    size, ids, draws = outputs(bench, (1,), (ROWS, S), (ROWS,))
    race = method == Method.RACE
    bench.call("filtered_rows_bytes", exclude.shape[1], S, race, 2, size)
    workspace = bench.buffer("workspace", torch.empty(int(size) // 8, dtype=torch.int64), "out")
    counts = bench.buffer("counts", torch.empty(ROWS, S), "out")
    arrivals: tuple[Tensor | None, ...] = (None, None)
    if race:
        arrivals = sorted_arrivals(bench, "weighted", tuple(arguments), 0, ROWS, exclude)
    bench.call(
        "draw_filtered_rows_weighted",
        *(*arguments, method != Method.WITH_REPLACEMENT, exclude, exclude.shape[1], *arrivals),
        *(ROWS, S, ids, draws, counts, workspace, 2),
    )
    assert_classes(ids, none=not race)


@pytest.mark.parametrize("value", BITS)
def test_races_over_any_probabilities(bench: Bench, value: str) -> None:
    q = torch.full((C,), 1 / C, dtype=torch.float64)
    q[::2] = BITS[value]
    table = ssc.WeightedSampler(torch.ones(C)).table
    rising, arrivals = sorted_arrivals(
        bench, "weighted", tuple(proposal(bench, table, q)), 0, 1, None
    )
    assert not rising.isnan().any()
    assert (rising >= 0).all()
    ids, draws = outputs(bench, (S,), ())
    bench.call("first_arrivals", rising, arrivals, S, ids, draws)
    assert_classes(ids, none=False)
    assert ids.unique().numel() == S


@pytest.mark.parametrize("bad", OUTSIDE)
@pytest.mark.parametrize("sigmoid", [False, True])
def test_rows_with_any_ids(bench: Bench, sigmoid: bool, bad: int) -> None:
    p = Problem(5, 20, C, 37, torch.float32, sigmoid)
    p.ids[0, 3] = p.ids[2, 5] = bad
    p.ids[4, 1] = bad  # a sample that is masked
    p.hits[3, 1] = bad
    out = run(bench, p)
    assert p.counted.tolist() == [True, False, True, True, False]
    assert out["loss"].isnan().tolist() == [True, False, True, False, False]
    assert out["grad_input"].isnan().all(dim=1).tolist() == [True, False, True, False, False]
