"""The optimizers against those of torch.optim, in float64: row-sparse gradients must do what dense
ones do, and SparseAdam where untouched rows are frozen."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sampled_softmax_cuda as ssc
from helpers.row_steps import parameter, row_gradients, trained

SHAPE = (40, 19)
SGD = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"weight_decay": 0.1},
    {"momentum": 0.9, "weight_decay": 0.1},
    {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
    {"momentum": 0.5, "dampening": 0.3, "weight_decay": 0.01, "maximize": True},
]


def compare(
    ours: Any, theirs: Any, steps: int = 60, dense: bool = True, tolerance: float = 1e-12, **kw: Any
) -> None:
    gradients = row_gradients(SHAPE, steps)
    p, optimizer = trained(ours, gradients, **kw)
    optimizer.settle()  # type: ignore[attr-defined]
    q, _ = trained(theirs, gradients, dense=dense, **kw)
    torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("options", SGD, ids=str)
def test_sgd_is_dense_sgd(device: str, options: dict[str, Any]) -> None:
    compare(
        lambda p: ssc.optim.SGD(p, lr=0.1, skipped="replay", **options),
        lambda p: torch.optim.SGD(p, lr=0.1, **options),
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", SGD, ids=str)
def test_sgd_beyond_the_horizon_of_its_debts(either: str, options: dict[str, Any]) -> None:
    """Rows that come back after more steps than momentum is remembered for."""
    gradients = row_gradients((400, 3), 1500, rows=1)
    p, optimizer = trained(
        lambda p: ssc.optim.SGD(p, lr=0.1, skipped="replay", **options), gradients
    )
    optimizer.settle()  # type: ignore[attr-defined]
    q, _ = trained(lambda p: torch.optim.SGD(p, lr=0.1, **options), gradients, dense=True)
    torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"lr_decay": 0.1, "initial_accumulator_value": 0.1}])
def test_adagrad_is_dense_adagrad(device: str, options: dict[str, Any]) -> None:
    compare(
        lambda p: ssc.optim.Adagrad(p, lr=0.1, **options),
        lambda p: torch.optim.Adagrad(p, lr=0.1, **options),
    )


def one_cycle(step: int, group: dict[str, Any]) -> None:
    """A learning rate and betas that change in every step."""
    group["lr"] = 0.01 * (1.1 + math.sin(step / 7))
    if "betas" in group:
        group["betas"] = (0.9 + 0.05 * math.cos(step / 5), 0.999)


@pytest.mark.parametrize("change", [None, one_cycle])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_replayed_adamw_is_dense_adamw(device: str, weight_decay: float, change: Any) -> None:
    """Without eps, to rounding, whatever the schedules."""
    options: dict[str, Any] = {"lr": 0.01, "eps": 1e-300, "weight_decay": weight_decay}
    compare(
        lambda p: ssc.optim.AdamW(p, skipped="replay", **options),
        lambda p: torch.optim.AdamW(p, **options),
        tolerance=1e-10,
        change=change,
    )


@pytest.mark.slow
def test_replayed_adamw_beyond_the_horizon(either: str) -> None:
    options: dict[str, Any] = {"lr": 0.01, "eps": 1e-300, "weight_decay": 0.1}
    gradients = row_gradients((400, 3), 1500, rows=1)
    p, optimizer = trained(lambda p: ssc.optim.AdamW(p, skipped="replay", **options), gradients)
    optimizer.settle()  # type: ignore[attr-defined]
    q, _ = trained(lambda p: torch.optim.AdamW(p, **options), gradients, dense=True)
    torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("eps", "bound"), [(1e-8, 1e-10), (1e-4, 1e-4), (1e-2, 2e-3)])
def test_eps_of_replayed_moves(native: str, eps: float, bound: float) -> None:
    """To first order in eps: the bound is on weights of size 1, over 300 steps of 0.01."""
    options: dict[str, Any] = {"lr": 0.01, "eps": eps, "weight_decay": 0.0}
    compare(
        lambda p: ssc.optim.AdamW(p, skipped="replay", **options),
        lambda p: torch.optim.AdamW(p, **options),
        steps=300,
        tolerance=bound,
    )


def test_frozen_adam_is_sparse_adam(device: str) -> None:
    compare(
        lambda p: ssc.optim.Adam(p, lr=0.01, skipped="freeze"),
        lambda p: torch.optim.SparseAdam(p, lr=0.01),
        dense=False,
    )


DENSE: list[tuple[Any, Any, dict[str, Any]]] = [
    (ssc.optim.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    (ssc.optim.Adagrad, torch.optim.Adagrad, {"lr": 0.1, "weight_decay": 0.1}),
    (ssc.optim.Adam, torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.1, "maximize": True}),
    (ssc.optim.AdamW, torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.1}),
]


@pytest.mark.parametrize("shape", [(), (7,), (5, 3), (4, 3, 2), (3, 1100), (0, 4)], ids=str)
@pytest.mark.parametrize(("ours", "theirs", "options"), DENSE)
def test_dense_gradients(
    device: str, ours: Any, theirs: Any, options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    p, q = parameter(shape), parameter(shape)
    first, second = ours([p], **options), theirs([q], **options)
    for _ in range(5):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
        first.step()
        second.step()
    torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_a_parameter_without_contiguous_rows(device: str) -> None:
    whole = parameter((6, 8))
    p, q = nn.Parameter(whole.detach().clone().t()), nn.Parameter(whole.detach().clone().t())
    first, second = ssc.optim.AdamW([p]), torch.optim.AdamW([q])
    for _ in range(3):
        p.grad = torch.randn(8, 6, dtype=p.dtype)
        q.grad = p.grad.clone()
        first.step()
        second.step()
    torch.testing.assert_close(p, q)
    assert p.stride() == (1, 8)


def mixed_gradients(steps: int) -> list[Tensor]:
    """Sparse ones with a dense one now and then, as of an exact loss."""
    gradients = row_gradients(SHAPE, steps)
    return [g.to_dense() if i % 5 == 3 else g for i, g in enumerate(gradients)]


def test_dense_and_sparse_gradients_in_turn(device: str) -> None:
    options: dict[str, Any] = {"lr": 0.01, "eps": 1e-300, "weight_decay": 0.1}
    gradients = mixed_gradients(30)
    p, optimizer = trained(lambda p: ssc.optim.AdamW(p, skipped="replay", **options), gradients)
    optimizer.settle()  # type: ignore[attr-defined]
    q, _ = trained(lambda p: torch.optim.AdamW(p, **options), gradients, dense=True)
    torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["momentum", "adamw"])
def test_a_history_that_is_full(device: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows pay when the history has no room for another step."""
    from sampled_softmax_cuda.optim import history

    monkeypatch.setattr(history, "CAPACITY", 600)
    gradients = row_gradients((50, 2), 1300, rows=1)
    options: dict[str, Any]
    if kind == "momentum":
        options = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.01}
        p, o = trained(lambda p: ssc.optim.SGD(p, skipped="replay", **options), gradients)
        q, _ = trained(lambda p: torch.optim.SGD(p, **options), gradients, dense=True)
    else:
        options = {"lr": 0.01, "eps": 1e-300, "weight_decay": 0.1}
        p, o = trained(lambda p: ssc.optim.AdamW(p, skipped="replay", **options), gradients)
        q, _ = trained(lambda p: torch.optim.AdamW(p, **options), gradients, dense=True)
    o.settle()  # type: ignore[attr-defined]
    torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)
