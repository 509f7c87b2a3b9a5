"""The kernels of per-row negatives on the checked executor: races, bounds, schedules, transfers."""

from __future__ import annotations

import pytest
import torch

import sampled_softmax_cuda as ssc
from helpers.backends import use_backend
from helpers.samplers import key
from helpers.simt_bench import SCHEDULES, Bench, require, sorted_arrivals
from helpers.simt_per_row import Problem, run
from sampled_softmax_cuda.ops import sample as ops
from sampled_softmax_cuda.ops.negatives import Source
from sampled_softmax_cuda.proposals import Method

pytestmark = pytest.mark.usefixtures("executor")


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [40, 7], ids=["rows of 16 bytes", "odd rows"])
def test_every_schedule_gives_the_same_bits(dim: int, dtype: torch.dtype, sigmoid: bool) -> None:
    require("checked")
    results = []
    for schedule in SCHEDULES:
        p = Problem(4, dim, 30, 300, dtype, sigmoid)
        results.append(run(Bench("checked", schedule=schedule, seed=1), p))
    for other in results[1:]:
        for name, tensor in results[0].items():
            assert torch.equal(tensor, other[name]), name
    # Against the kernels of the CPU, which other tests hold to float64.
    operands = (p.input, p.weight, p.bias, p.target_logit, p.hits, p.counted)
    arguments = (*operands, *Source(p.ids, p.log_count))
    ops = torch.ops.sampled_softmax
    scalars = (0.8, 2.0, True, sigmoid)
    loss, peak = ops.negatives_rows(*arguments, *scalars)
    grads = ops.negatives_grads(*arguments, *scalars, p.row_scale, False)
    torch.testing.assert_close(results[0]["loss"], loss, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(results[0]["peak"], peak, rtol=2e-5, atol=2e-5)
    for name, grad in zip(("grad_input", "grad_weight", "grad_bias"), grads, strict=False):
        ours = results[0][name].to(dtype)
        eps = max(8 * torch.finfo(dtype).eps, 1e-5)  # ex2.approx in sums
        torch.testing.assert_close(
            ours, grad, rtol=eps, atol=eps, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_gathered_rows_are_whole_sectors_and_read_once() -> None:
    require("checked")
    bench = Bench("checked", statistics=True)
    p = Problem(6, 128, 200, 64, torch.float32, False)
    p.counted[:] = True
    p.log_count[:] = 0
    p.hits[:] = -1
    run(bench, p)
    batch, dim, _, samples = p.shape
    wide = [
        line
        for line in bench.statistics()
        if line["kind"] == "global load" and line["bytes"] == 16 * line["lanes"]
    ]
    assert not [line for line in wide if line["transfers"] > line["ideal"]]
    by_class = [line for line in wide if "row_class_grads" in line["kernel"]]
    gathers = [line for line in wide if line not in by_class]
    # W once in each of the two kernels; h_i comes with every kRowsInFlight-th row, from L1.
    in_flight = 4
    rows = batch * samples * dim * 4
    assert sum(line["bytes"] for line in gathers) == 2 * rows + rows // in_flight
    # h_i for each of its samples, and the row of each class to be added to.
    classes = len(p.ids.unique())
    assert sum(line["bytes"] for line in by_class) == rows + classes * dim * 4


def test_ids_of_rows_are_those_of_the_cpu() -> None:
    require("checked")
    classes, first, rows, samples = 2**40, 5, 3, 37
    ids = torch.empty(rows, samples, dtype=torch.int64)
    count = torch.empty(rows, samples)
    bench, k = Bench("checked"), key(9, 4)
    bench.buffer("key", k, "in")
    bench.buffer("ids", ids, "out")
    bench.buffer("count", count, "out")
    bench.call("draw_rows_log_uniform", classes, k, first, rows, samples, ids, count)

    sampler = ssc.LogUniformSampler(classes)
    arguments = sampler._proposal()
    target = torch.zeros(first + rows, 0, dtype=torch.int64)
    with use_backend("reference"):
        want, _, log_count, _ = ops.sample(
            arguments, k, target, samples, Method.WITH_REPLACEMENT, None, None, True
        )
    assert torch.equal(ids, want[first:])
    torch.testing.assert_close(count, log_count[first:])


@pytest.mark.parametrize("method", list(Method))
def test_filtered_draws_are_the_same_in_any_order(method: Method) -> None:
    require("checked")
    # Two blocks for three rows, the last of which is left with too few classes.
    classes, rows, samples, width = 300, 3, 700 if method == Method.WITH_REPLACEMENT else 200, 290
    race = method == Method.RACE
    if race:
        classes = 299  # an odd number is filled up
    lists = torch.randint(-1, 90, (rows, width), generator=torch.Generator().manual_seed(1))
    lists[2] = torch.arange(width)
    if method == Method.WITH_REPLACEMENT:
        lists = torch.cat((lists, torch.arange(10).expand(rows, 10) + 290), dim=1)
        lists[:2, -1] = -1
    sampler = ssc.LogUniformSampler(classes)
    arguments = sampler._proposal()
    target = torch.zeros(2, 0, dtype=torch.int64)
    with use_backend("reference"):
        rest = (samples, method, None, lists[:2], True)
        want = ops.sample(arguments, key(9, 4), target, *rest)
    for schedule in SCHEDULES:
        bench, k = Bench("checked", schedule=schedule, seed=3), key(9, 4)
        size = torch.zeros(1, dtype=torch.int64)
        bench.call("filtered_rows_bytes", lists.shape[1], samples, race, 2, size)
        out = {
            "ids": torch.empty(rows, samples, dtype=torch.int64),
            "draws": torch.empty(rows, dtype=torch.int64),
            "count": torch.empty(rows, samples),
            "workspace": torch.empty(int(size) // 8, dtype=torch.int64),
        }
        bench.buffer("key", k, "in")
        bench.buffer("lists", lists, "in")
        for name, tensor in out.items():
            bench.buffer(name, tensor, "out")
        arrivals: tuple[torch.Tensor | None, ...] = (None, None)
        if race:
            arrivals = sorted_arrivals(bench, "log_uniform", (classes, k), 0, rows, lists)
        bench.call(
            "draw_filtered_rows_log_uniform",
            *(classes, k, method != Method.WITH_REPLACEMENT, lists, lists.shape[1], *arrivals),
            *(rows, samples, *out.values(), 2),
        )
        assert torch.equal(out["ids"][:2], want[0])
        assert torch.equal(out["draws"][:2], want[1])
        torch.testing.assert_close(out["count"][:2], want[2])
        assert (out["ids"][2] == -1).all()
        assert out["count"][2].isnan().all()
