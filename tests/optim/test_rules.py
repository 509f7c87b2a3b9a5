"""Rules that torch.optim has no twin of, against formulas written out here: row-wise ones, rows
that catch up with "decay", and rounding of 16-bit weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sampled_softmax_cuda as ssc
from helpers.row_steps import parameter, row_gradients, sparse, trained

SHAPE = (30, 11)


def touched(gradient: Tensor) -> tuple[list[int], dict[int, Tensor]]:
    dense = gradient.to_dense().cpu()
    rows = sorted(set(gradient._indices()[0].tolist()))
    return rows, {row: dense[row] for row in rows}


def test_row_wise_adagrad(device: str) -> None:
    gradients = row_gradients(SHAPE, 30)
    p, _ = trained(lambda p: ssc.optim.RowWiseAdagrad(p, lr=0.1, weight_decay=0.01), gradients)
    q, sums = parameter(SHAPE).detach().cpu().clone(), torch.zeros(SHAPE[0], dtype=torch.float64)
    for gradient in gradients:
        for row, g in touched(gradient)[1].items():
            g = g + 0.01 * q[row]
            sums[row] += (g * g).mean()
            q[row] -= 0.1 * g / (sums[row].sqrt() + 1e-10)
    torch.testing.assert_close(p.detach().cpu(), q, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("row_wise", [False, True])
def test_decay_of_rows_that_come_back(device: str, row_wise: bool) -> None:
    """Moments fade and weights decay in every step, by that step's learning rate."""
    gradients = row_gradients(SHAPE, 40)
    rates = [0.01 * (1.1 + math.sin(step)) for step in range(len(gradients))]

    def change(step: int, group: dict[str, Any]) -> None:
        group["lr"] = rates[step]

    kind: Any = ssc.optim.RowWiseAdam if row_wise else ssc.optim.AdamW
    p, optimizer = trained(lambda p: kind(p, weight_decay=0.2), gradients, change=change)
    optimizer.settle()  # type: ignore[attr-defined]
    q = parameter(SHAPE).detach().cpu().clone()
    m, v = torch.zeros_like(q), torch.zeros_like(q)
    for step, (gradient, lr) in enumerate(zip(gradients, rates, strict=True), 1):
        m, v, q = 0.9 * m, 0.999 * v, (1 - lr * 0.2) * q
        for row, g in touched(gradient)[1].items():
            m[row] += 0.1 * g
            v[row] += 0.001 * ((g * g).mean() if row_wise else g * g)
            root = (v[row] / (1 - 0.999**step)).sqrt() + 1e-8
            q[row] -= lr / (1 - 0.9**step) * m[row] / root
    torch.testing.assert_close(p.detach().cpu(), q, rtol=1e-11, atol=1e-12)
    state = optimizer.state[p]
    torch.testing.assert_close(state["exp_avg"].cpu(), m, rtol=1e-10, atol=1e-12)
    second = v[:, 0] if row_wise else v
    torch.testing.assert_close(state["exp_avg_sq"].cpu(), second, rtol=1e-10, atol=1e-12)


def test_momentum_that_fades(device: str) -> None:
    gradients = row_gradients(SHAPE, 40)
    p, optimizer = trained(lambda p: ssc.optim.SGD(p, lr=0.1, momentum=0.8), gradients)
    optimizer.settle()  # type: ignore[attr-defined]
    q = parameter(SHAPE).detach().cpu().clone()
    m = torch.zeros_like(q)
    for gradient in gradients:
        m = 0.8 * m
        for row, g in touched(gradient)[1].items():
            m[row] += g
            q[row] -= 0.1 * m[row]
    torch.testing.assert_close(p.detach().cpu(), q, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("skipped", ["freeze", "decay", "replay"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_only_touched_rows_are_written(device: str, dtype: torch.dtype, skipped: Any) -> None:
    gradients = row_gradients((50, 7), 3, rows=2, dtype=dtype)
    p, optimizer = trained(
        lambda p: ssc.optim.AdamW(p, lr=0.1, skipped=skipped), gradients, dtype=dtype
    )
    rows = torch.cat([g._indices()[0] for g in gradients]).unique()
    others = [row for row in range(50) if row not in rows.tolist()]
    assert torch.equal(p[others], parameter((50, 7), dtype)[others])
    assert not torch.equal(p[rows], parameter((50, 7), dtype)[rows])
    assert (optimizer.state[p]["exp_avg"][others] == 0).all()


@given(
    rows=st.integers(1, 9),
    dim=st.sampled_from([1, 2, 5, 16, 33, 129]),
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_any_gradients(rows: int, dim: int, counts: list[int], seed: int) -> None:
    """Shapes, repeats and empty gradients, against dense AdamW."""
    gradients = []
    for step, count in enumerate(counts):
        gradients += row_gradients((rows, dim), 1, rows=count, seed=seed + step)
    options: dict[str, Any] = {"lr": 0.01, "eps": 1e-300}
    p, optimizer = trained(lambda p: ssc.optim.AdamW(p, skipped="replay", **options), gradients)
    optimizer.settle()  # type: ignore[attr-defined]
    start = parameter((rows, dim))
    q, _ = trained(lambda p: torch.optim.AdamW(p, **options), gradients, dense=True)
    moved = torch.zeros(rows, dtype=torch.bool)
    for gradient in gradients:
        moved[gradient._indices()[0]] = True
    # A row that never had a gradient only decays; torch divides its zero moment by eps.
    torch.testing.assert_close(p[moved], q[moved], rtol=1e-10, atol=1e-12)
    shrunk = start * (1 - 0.01 * 0.01) ** len(counts)
    torch.testing.assert_close(p[~moved], shrunk[~moved], rtol=1e-12, atol=0.0)


# --- 16 bits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stochastic_rounding_is_unbiased(device: str, dtype: torch.dtype) -> None:
    """A step of a tenth of the distance between two numbers moves a tenth of the weights by it."""
    size = (64, 256)
    p = torch.nn.Parameter(torch.ones(size, dtype=dtype))
    distance = torch.finfo(dtype).eps
    p.grad = sparse(torch.arange(64), torch.full(size, -distance, dtype=dtype), size)
    optimizer = ssc.optim.SGD([p], lr=0.1, rounding="stochastic", seed=3)
    optimizer.step()
    moved = (p.double() - 1) / distance
    assert set(moved.unique().tolist()) == {0.0, 1.0}
    # 16,384 draws: the standard deviation of their mean is 0.0023
    assert abs(float(moved.mean()) - 0.1) < 0.012
    assert not torch.equal(moved[0], moved[1])


@pytest.mark.parametrize("value", [3.0, -1e-3, 2.0**-17 * 1.3, -(2.0**-24) * 0.7, 6e4])
def test_stochastic_rounding_of_all_sizes(device: str, value: float) -> None:
    """Subnormal and large fp16 numbers too: the mean of many roundings is the number."""
    size = (256, 256)
    p = torch.nn.Parameter(torch.zeros(size, dtype=torch.float16))
    p.grad = sparse(torch.arange(256), torch.ones(size, dtype=torch.float16), size)
    ssc.optim.SGD([p], lr=abs(value), maximize=value > 0, rounding="stochastic").step()
    below = torch.tensor(value).to(torch.float16)
    spacing = abs(float(torch.nextafter(below, below * 2 + 1e-7) - below))
    assert abs(float(p.double().mean()) - value) < 4 * 0.5 * spacing / 256
    assert len(p.unique()) <= 2


def test_kahan_adds_up_what_rounding_takes(device: str) -> None:
    """1,000 steps of 1e-4 from 1: nearest rounding never leaves 1."""
    final = {}
    for rounding in ("nearest", "kahan"):
        p = torch.nn.Parameter(torch.ones(4, 8, dtype=torch.bfloat16))
        optimizer = ssc.optim.SGD([p], lr=1e-4, rounding=rounding)  # type: ignore[arg-type]
        for _ in range(1000):
            p.grad = sparse(torch.arange(4), torch.ones(4, 8, dtype=torch.bfloat16), (4, 8))
            optimizer.step()
        final[rounding] = float(p.detach().double().mean())
    assert final["nearest"] == 1.0
    assert abs(final["kahan"] - 0.9) < 0.004


def test_moments_of_16_bits_follow_those_of_32(native: str) -> None:
    gradients = row_gradients((20, 64), 200, dtype=torch.float32)
    states = {}
    for dtype in (torch.float32, torch.bfloat16):
        p, optimizer = trained(
            lambda p, dtype=dtype: ssc.optim.AdamW(p, state_dtype=dtype),  # type: ignore[misc]
            gradients,
            dtype=torch.float32,
        )
        assert optimizer.state[p]["exp_avg_sq"].dtype == dtype
        states[dtype] = optimizer.state[p]["exp_avg_sq"].double().mean()
    ratio = float(states[torch.bfloat16] / states[torch.float32])
    assert abs(ratio - 1) < 0.02  # rounded to nearest it stays behind by a tenth and more
