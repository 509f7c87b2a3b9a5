"""The kernels of row updates on the checked executor: races, bounds, schedules, transfers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers.simt_bench import SCHEDULES, Bench, require
from sampled_softmax_cuda.ops.library import use_backend
from sampled_softmax_cuda.ops.optim import row_update
from sampled_softmax_cuda.updates import HISTORY_COLUMNS, RowUpdate, Rule, UpdateOptions

pytestmark = pytest.mark.usefixtures("executor")

ROUNDING = ("nearest", "stochastic", "kahan")
RULES = (Rule.SGD, Rule.ROW_WISE_ADAGRAD, Rule.ADAM, Rule.ROW_WISE_ADAM)
# With Adagrad no row owes anything.
CASES = [(rule, settles) for rule in RULES for settles in (False, True)[: 2 - rule.adagrad]]
IDS = torch.tensor([-3, 0, 2, 2, 2, 2, *range(5, 37), 40])


def make_update(
    rule: Rule, dim: int, dtype: torch.dtype, settles: bool = False, kahan: bool = False
) -> RowUpdate:
    """An update of 40 rows: ids that are no rows, repeats of which two are zero, rows that owe."""
    g = torch.Generator().manual_seed(3)
    rows, count = 40, len(IDS)
    values = torch.randn(count, dim, generator=g).to(dtype)
    order = torch.randperm(count, generator=g)
    values[order[3:5]] = 0
    history = torch.zeros(HISTORY_COLUMNS, 16, dtype=torch.float64)
    history[:3, :6] = -0.1 * torch.arange(6)
    history[3:, :6] = torch.rand(4, 6, generator=g)
    halves = dtype == torch.bfloat16
    rounding = "kahan" if kahan else "stochastic" if halves else "nearest"
    options = UpdateOptions(rule, 0.1, 0.9, 0.99, 1e-3, l2=0.1, replay=True)
    second = torch.rand((rows,) if rule.row_wise else (rows, dim), generator=g)
    return RowUpdate(
        options,
        torch.randn(rows, dim, generator=g).to(dtype),
        torch.tensor(5.0),
        None if settles else values,
        IDS.flip(0).contiguous() if settles else IDS,
        None if settles else order,
        None if rule.adagrad else torch.randn(rows, dim, generator=g).to(dtype),
        None if rule == Rule.SGD else second.to(torch.float32 if rule.row_wise else dtype),
        torch.zeros(rows, dim, dtype=dtype) if kahan else None,
        None if rule.adagrad else torch.randint(6, (rows,), generator=g).int(),
        None if rule.adagrad else history,
        4,
        rounding=rounding,
        seed=5 | 1 << 32,
    )


CHANGED = ("param", "first", "second", "compensation", "last_step", "history", "step")


def run(bench: Bench, u: RowUpdate) -> dict[str, Tensor]:
    """The tensors that the update changes, after it."""
    rows, dim = u.param.shape
    o = u.options
    changed = {name: getattr(u, name) for name in CHANGED if getattr(u, name) is not None}
    for name, tensor in changed.items():
        bench.buffer(name, tensor)
    for name in ("values", "ids", "order"):
        if getattr(u, name) is not None:
            bench.buffer(name, getattr(u, name), "in")
    lr = bench.buffer("lr", torch.tensor(o.lr, dtype=torch.float64), "in")
    sizes = torch.zeros(2, dtype=torch.int64)
    bench.call("update_numbers_bytes", sizes[:1])
    count = rows if u.ids is None else len(u.ids)
    owes = u.last_step is not None
    bench.call("update_workspace_bytes", count, u.ids is not None, owes, sizes[1:])
    numbers = bench.buffer("numbers", torch.empty(int(sizes[0]), dtype=torch.uint8), "out")
    workspace = bench.buffer("workspace", torch.empty(int(sizes[1]), dtype=torch.uint8), "out")
    second = (None, u.second) if o.rule.row_wise else (u.second, None)
    dtype = str(u.param.dtype).removeprefix("torch.")
    capacity = 0 if u.history is None else u.history.shape[1]
    bench.call(
        f"update_{dtype}_{dtype}",
        *(u.param, rows, dim, u.values, u.ids, u.order, count, u.first, *second),
        *(u.compensation, u.last_step, u.history, capacity, u.horizon, u.step, lr),
        *(int(o.rule), o.beta1, o.beta2, o.eps, o.l2, o.decay, o.replay),
        *(ROUNDING.index(u.rounding), u.seed, numbers, workspace),
    )
    return changed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [136, 7], ids=["rows of 16 bytes", "odd rows"])
@pytest.mark.parametrize(
    ("rule", "settles"), CASES, ids=lambda x: x.name if isinstance(x, Rule) else f"settles {x}"
)
def test_every_schedule_gives_the_cpus_bits(
    rule: Rule, dim: int, dtype: torch.dtype, settles: bool
) -> None:
    require("checked")
    for kahan in (False, True)[: 2 if dtype == torch.bfloat16 else 1]:
        want = make_update(rule, dim, dtype, settles, kahan)
        with use_backend("native"):
            row_update(want)
        for schedule in SCHEDULES:
            bench = Bench("checked", schedule=schedule, seed=1)
            ours = run(bench, make_update(rule, dim, dtype, settles, kahan))
            for name, tensor in ours.items():
                assert torch.equal(tensor, getattr(want, name)), (schedule, name, kahan)


def test_rows_are_whole_sectors_and_moved_once() -> None:
    """Adam in float32: weight, gradient and two moments in, weight and moments out."""
    require("checked")
    rows, dim = 64, 256
    bench = Bench("checked", statistics=True)
    u = make_update(Rule.ADAM, dim, torch.float32)
    u = RowUpdate(
        u.options,
        torch.randn(rows, dim),
        torch.tensor(5.0),
        torch.randn(rows, dim),
        torch.arange(rows),
        None,
        torch.randn(rows, dim),
        torch.rand(rows, dim),
    )
    run(bench, u)
    wide = [line for line in bench.statistics() if line["bytes"] == 16 * line["lanes"]]
    assert not [line for line in wide if line["transfers"] > line["ideal"]]
    for kind, arrays in (("global load", 4), ("global store", 3)):
        moved = sum(line["bytes"] for line in wide if line["kind"] == kind)
        assert moved == arrays * rows * dim * 4, kind
