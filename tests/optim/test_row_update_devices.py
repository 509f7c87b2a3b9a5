"""Steps of optimizers on the GPU's kernels: bit for bit those of the CPU's and of the reference."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sampled_softmax_cuda as ssc
from helpers.simt_backend import use_simt
from sampled_softmax_cuda.ops.library import use_backend
from sampled_softmax_cuda.ops.optim import row_update
from sampled_softmax_cuda.updates import HISTORY_COLUMNS, RowUpdate, Rule, UpdateOptions

optim = ssc.optim
Maker = Callable[..., ssc.optim.base.RowOptimizer]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# [C, D], and [C]: rows of one lane, of less and more than a warp's 128 columns, and odd ones.
SHAPES = ((7,), (9, 1), (11, 5), (8, 16), (6, 131), (5, 600), (4, 1025))
STORAGE: tuple[dict[str, Any], ...] = (
    {},
    {"rounding": "stochastic", "state_dtype": torch.bfloat16, "seed": 5},
    {"rounding": "kahan"},
    {"rounding": "stochastic", "seed": 5},
)

MAKERS: dict[str, Maker] = {
    "sgd": lambda p, **k: optim.SGD(p, lr=0.1, weight_decay=0.1, maximize=True, **k),
    "adagrad": lambda p, **k: optim.Adagrad(
        p, lr=0.1, weight_decay=0.1, lr_decay=0.1, initial_accumulator_value=0.1, **k
    ),
    "row_wise_adagrad": lambda p, **k: optim.RowWiseAdagrad(p, lr=0.1, weight_decay=0.1, **k),
    "adam": lambda p, **k: optim.Adam(p, lr=0.1, weight_decay=0.1, **k),
}
for _skipped in ("decay", "freeze", "replay"):
    MAKERS[f"adamw-{_skipped}"] = lambda p, s=_skipped, **k: optim.AdamW(p, lr=0.1, skipped=s, **k)
    MAKERS[f"row_wise_adam-{_skipped}"] = lambda p, s=_skipped, **k: optim.RowWiseAdam(
        p, lr=0.1, weight_decay=0.1, skipped=s, **k
    )
    MAKERS[f"momentum-{_skipped}"] = lambda p, s=_skipped, **k: optim.SGD(
        p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True, skipped=s, **k
    )


def on(backend: str) -> AbstractContextManager[Any]:
    return use_simt(backend) if backend in ("simt", "ptx") else use_backend(backend)


def agree(name: str, ours: Tensor, other: Tensor, exact: bool = True) -> None:
    assert ours.dtype == other.dtype
    if exact:
        torch.testing.assert_close(ours, other, rtol=0, atol=0, equal_nan=True, msg=name)
        assert torch.equal(ours.signbit(), other.signbit()), f"{name}: a zero's sign"
        return
    torch.testing.assert_close(ours, other, rtol=1e-14, atol=1e-15, equal_nan=True, msg=name)


def trajectory(
    backend: str, maker: Maker, shape: tuple[int, ...], dtype: torch.dtype, sparse: bool
) -> dict[str, Tensor]:
    """Parameter and states after steps whose ids are repeated, one has none, and some are zeros."""
    g = torch.Generator().manual_seed(1)
    p = torch.nn.Parameter(torch.randn(shape, generator=g).to(dtype))
    with on(backend):
        optimizer = maker([p])
        for step in range(9):
            ids = torch.randint(shape[0], (0 if step == 4 else 6,), generator=g)
            rows = torch.randn(len(ids), *shape[1:], generator=g).to(dtype)
            if len(ids):
                ids[3:5], rows[3] = 0, 0
            p.grad = torch.sparse_coo_tensor(ids[None], rows, shape, check_invariants=True)
            if step % 3 == 2:
                p.grad = p.grad.coalesce()
            if not sparse:
                p.grad = torch.randn(shape, generator=g).to(dtype)
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
            optimizer.step()
        before = p.detach().clone()
        optimizer.settle()
    return {"before settle": before, "param": p.detach(), **optimizer.state[p]}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MAKERS)
def test_a_trajectory(executor: str, native: None, name: str, dtype: torch.dtype) -> None:
    for storage in STORAGE[: 2 if dtype.itemsize > 2 else 4]:
        shapes = SHAPES if not storage else ((7,), (11, 5), (6, 131), (4, 264))
        for shape in shapes:
            for sparse in (True, False):

                def maker(p: Any, storage: dict[str, Any] = storage) -> Any:
                    return MAKERS[name](p, **storage)

                case = (maker, shape, dtype, sparse)
                ours = trajectory(executor, *case)
                # The reference is slow, and that the CPU has its bits is not for here to show.
                others = ("native", "reference") if shape == (11, 5) else ("native",)
                for other in others:
                    # torch's float64 root may be off by one in the last place
                    exact = other == "native" or dtype != torch.float64
                    for key, value in trajectory(other, *case).items():
                        agree(f"{storage} {shape} {sparse} {other} {key}", ours[key], value, exact)


# --- the operator ---------------------------------------------------------------------------------


def rule_name(rule: Rule) -> str:
    return rule.name.lower()


def make_update(rule: Rule, rows: int = 10, dim: int = 37, **options: Any) -> RowUpdate:
    """An update after five steps, in which rows have paid up to different ones."""
    g = torch.Generator().manual_seed(3)
    step = torch.tensor(5.0)
    history = torch.zeros(HISTORY_COLUMNS, 16, dtype=torch.float64)
    history[:3, :6] = -0.1 * torch.arange(6)
    history[3:, :6] = torch.rand(4, 6, generator=g)
    shape = (rows,) if rule.row_wise else (rows, dim)
    return RowUpdate(
        UpdateOptions(rule, 0.1, 0.9, 0.99, 1e-3, decay=0.1, replay=True, **options),
        torch.randn(rows, dim, generator=g),
        step,
        ids=torch.tensor([-(2**40), -1, 0, 2, 2, 2, 2, 5, 9, 10, 2**33]),
        values=torch.randn(11, dim, generator=g),
        first=None if rule.adagrad else torch.randn(rows, dim, generator=g),
        second=None if rule == Rule.SGD else torch.rand(shape, generator=g),
        last_step=None if rule.adagrad else torch.randint(6, (rows,), generator=g).int(),
        history=None if rule.adagrad else history,
        horizon=4,
    )


STATES = ("param", "step", "first", "second", "last_step", "history")


def run(backend: str, update: RowUpdate) -> dict[str, Tensor]:
    copies = {name: getattr(update, name) for name in STATES}
    copies = {name: x.clone() for name, x in copies.items() if x is not None}
    with on(backend):
        row_update(replace(update, **copies))
    return copies


def compare(executor: str, update: RowUpdate) -> dict[str, Tensor]:
    """The update on the executor, which is what the others have."""
    ours = run(executor, update)
    for backend in ("native", "reference"):
        for name, value in run(backend, update).items():
            agree(f"{backend} {name}", ours[name], value)
    return ours


@pytest.mark.parametrize("rule", list(Rule), ids=rule_name)
def test_ids_that_are_no_rows_are_left_out(executor: str, native: None, rule: Rule) -> None:
    update = make_update(rule)
    ours = compare(executor, update)
    touched = (ours["param"] != update.param).any(1).nonzero()[:, 0]
    assert touched.tolist() == [0, 2, 5, 9]


@pytest.mark.parametrize("rule", list(Rule), ids=rule_name)
def test_repeats_that_are_zero_cost_no_bits(executor: str, native: None, rule: Rule) -> None:
    """A GPU's gradients have rows of zeros with id 0 for the repeats of a class; −0 + 0 is 0."""
    g = torch.Generator().manual_seed(2)
    update = make_update(rule, rows=40, dim=6)
    ids = torch.cat((torch.zeros(2100, dtype=torch.int64), torch.arange(40)))
    ids, _ = ids.sort()
    order = torch.randperm(len(ids), generator=g)
    values = torch.zeros(len(ids), 6)
    for position in (0, 2050, 2099, *range(2100, len(ids))):  # words of bits apart
        values[order[position]] = torch.randn(6, generator=g)
    # Column 1 of row 0 is −0 but for the rows of zeros, and what is added to has that sign too.
    values[order[[0, 2050, 2099, 2100]], 1] = -0.0
    if update.first is not None and update.last_step is not None:
        update.first[0, 1] = -0.0
        update.last_step[0] = 5
    compare(executor, replace(update, ids=ids, order=order, values=values))


@pytest.mark.parametrize("rule", [Rule.SGD, Rule.ADAM, Rule.ROW_WISE_ADAM], ids=rule_name)
def test_whoever_comes_first_settles(executor: str, native: None, rule: Rule) -> None:
    ids = torch.tensor([9, 2, -1, 2, 5, 2, 9, 10, 0])
    update = replace(make_update(rule), values=None, ids=ids)
    update.last_step[5] = 5  # type: ignore[index]
    ours = compare(executor, update)
    touched = (ours["param"] != update.param).any(1).nonzero()[:, 0]
    owed = [row for row in (0, 2, 9) if update.last_step[row] < 5]  # type: ignore[index]
    assert touched.tolist() == owed
    assert owed
    assert torch.equal(ours["step"], update.step)
    all_rows = compare(executor, replace(update, ids=None))
    assert (all_rows["last_step"] == 5).all()


def test_all_rows_settle_a_part_at_a_time(executor: str, native: None) -> None:
    """2^18 rows have a plan at a time."""
    rows = (1 << 18) + 70
    update = replace(make_update(Rule.SGD, rows, 1), values=None, ids=None)
    ours, want = run(executor, update), run("native", update)
    for name, value in want.items():
        agree(name, ours[name], value)
    assert (ours["last_step"] == 5).all()


@pytest.mark.parametrize("rule", list(Rule), ids=rule_name)
def test_numbers_in_the_devices_memory(executor: str, native: None, rule: Rule) -> None:
    update = make_update(rule, maximize=True)
    update = replace(update, grad_scale=torch.tensor(8.0), found_inf=torch.tensor([0.0]))
    as_number = compare(executor, update)
    lr = torch.tensor(update.options.lr, dtype=torch.float64)
    with_tensor = replace(update, options=replace(update.options, lr=lr))
    for name, value in compare(executor, with_tensor).items():
        assert torch.equal(value, as_number[name]), name


@pytest.mark.parametrize("settles", [False, True])
def test_nothing_happens_after_an_overflow(executor: str, native: None, settles: bool) -> None:
    update = replace(make_update(Rule.ADAM), found_inf=torch.tensor(1.0))
    if settles:
        update = replace(update, values=None)
    for name, value in run(executor, update).items():
        assert torch.equal(value, getattr(update, name)), name


@pytest.mark.parametrize(("rows", "dim"), [(10, 0), (0, 5), (3, 2000)])
def test_sizes(executor: str, native: None, rows: int, dim: int) -> None:
    """Nothing to do counts as a step too; and the rows of a dense gradient may be cut anew."""
    update = replace(make_update(Rule.ADAGRAD, rows, dim), ids=None)
    update = replace(update, values=torch.randn(rows, dim), last_step=None, history=None)
    ours = compare(executor, update)
    assert ours["step"] == 6
    no_ids = replace(make_update(Rule.ADAM), ids=torch.zeros(0, dtype=torch.int64))
    ours = compare(executor, replace(no_ids, values=torch.zeros(0, 37)))
    assert ours["step"] == 6


def test_rows_of_a_wider_matrix(executor: str, native: None) -> None:
    """Rows apart, and rows that begin where a load of 16 bytes can't."""
    whole = torch.randn(10, 41)
    for first, dim in ((0, 36), (1, 36)):
        update = make_update(Rule.ADAM, dim=dim)
        results = []
        for backend in (executor, "native", "reference"):
            param = whole.clone()
            with on(backend):
                row_update(replace(update, param=param[:, first : first + dim]))
            results.append(param)
            update = make_update(Rule.ADAM, dim=dim)
        for other in results[1:]:
            assert torch.equal(results[0], other)


def test_memory_is_protected(simt: str) -> None:
    update = make_update(Rule.ADAM)
    with pytest.raises(RuntimeError, match="values must be"):
        row_update(replace(update, values=torch.zeros(3, 37)))
    with pytest.raises(RuntimeError, match="settling needs last_step"):
        row_update(replace(update, values=None, last_step=None, history=None))
    with pytest.raises(RuntimeError, match="order must be int64"):
        row_update(replace(update, order=torch.zeros(11)))
