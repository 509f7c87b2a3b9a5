"""The kernels of a step around its loss, run by csrc/simt: reductions and the list of classes."""

from __future__ import annotations

import pytest
import torch

from helpers.simt_bench import SCHEDULES, Bench, require

pytestmark = pytest.mark.usefixtures("executor")

SIZES = [0, 1, 31, 1024, 2500]  # of a block of 1,024 threads: none, one, part of a warp, all, more


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", SIZES)
def test_factors_of_rows(dtype: torch.dtype, batch: int) -> None:
    require("checked")
    target = torch.arange(batch)
    target[::3] = -100
    for mean in (True, False):
        for kept in (target, torch.full_like(target, -100)):
            bench = Bench("checked", schedule="shuffled", seed=batch)
            factors = bench.buffer("factors", torch.full((batch,), torch.nan, dtype=dtype), "out")
            bench.buffer("target", kept, "in")
            name = f"row_factors_{str(dtype).removeprefix('torch.')}"
            bench.call(name, kept, batch, -100, mean, factors)
            counted = max(int((kept != -100).sum()), 1)
            want = torch.tensor(1.0 / counted if mean else 1.0, dtype=dtype)
            assert (factors == want).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", SIZES)
def test_the_total(dtype: torch.dtype, batch: int) -> None:
    """Sums that cancel: in double they keep their digits, and no schedule changes a bit."""
    require("checked")
    g = torch.Generator().manual_seed(batch)
    factors = torch.randn(batch, generator=g, dtype=torch.float64).to(dtype)
    loss = torch.randn(batch, generator=g, dtype=torch.float64).to(dtype) * 1e6
    totals = []
    for schedule in SCHEDULES:
        bench = Bench("checked", schedule=schedule, seed=1)
        total = bench.buffer("total", torch.full((), torch.nan, dtype=dtype), "out")
        bench.buffer("factors", factors, "in")
        bench.buffer("loss", loss, "in")
        name = f"total_loss_{str(dtype).removeprefix('torch.')}"
        bench.call(name, factors, loss, batch, total)
        totals.append(total.item())
    terms = factors.double() * loss.double()
    rounding = torch.finfo(dtype).eps * abs(totals[0]) + 1e-14 * float(terms.abs().sum())
    assert abs(totals[0] - float(terms.sum())) <= rounding
    assert len(set(totals)) == 1


def test_the_list_of_classes() -> None:
    """Samples, then targets; what is no class, or a row that doesn't count, goes to the end."""
    require("checked")
    classes, ignored = 10, 3
    ids = torch.tensor([3, 9, 0, 10, -1, 2**62] * 60)
    target = torch.tensor([3, -100, 5, 9, 10] * 50)
    for samples, batch in [(360, 250), (0, 3), (4, 0), (0, 0)]:
        bench = Bench("checked")
        bench.buffer("ids", ids[:samples], "in")
        bench.buffer("target", target[:batch], "in")
        out = bench.buffer("classes", torch.full((samples + batch,), -7), "out")
        entries = bench.buffer("entries", torch.full((samples + batch,), -7), "out")
        arguments = (samples, target[:batch], batch, classes, ignored, out, entries)
        bench.call("list_classes", ids[:samples], *arguments)
        outside_ids = (ids < 0) | (ids >= classes)
        outside_target = (target < 0) | (target >= classes) | (target == ignored)
        want = torch.cat(
            (ids.masked_fill(outside_ids, classes)[:samples],
             target.masked_fill(outside_target, classes)[:batch])
        )  # fmt: skip
        assert torch.equal(out, want)
        assert torch.equal(entries, torch.arange(samples + batch))
