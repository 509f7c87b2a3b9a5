"""The exact loss and plain logits of csrc/cuda, run by csrc/simt, against float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from gpu_model import matmul_traffic
from torch import Tensor
from torch.nn import functional as F

from helpers.simt_bench import SCHEDULES, Bench, require
from helpers.simt_loss import (
    DTYPES,
    OPTIONS,
    Path,
    Problem,
    accumulator,
    logits,
    loss_and_grads,
    loss_rows,
    make_problem,
)

pytestmark = pytest.mark.usefixtures("executor")

TF32 = Path(torch.float32, tf32=True)
# Absolute, for logits of a few units that are accumulated in float32, or in float64.
TOLERANCE = {torch.float64: 1e-13, "other": 6e-6}
# B, D, C: one of each; below, beside and above a tile of 64 or 128, a stage of 8, 16 or 32, a chunk
# of 16 bytes; rows that are not aligned.
SHAPES = [
    (1, 1, 1),
    (7, 33, 129),
    (130, 40, 257),
    (3, 100, 5),
    (65, 16, 300),
    (2, 257, 64),
]


@pytest.fixture
def bench() -> Bench:
    require("checked")
    return Bench("checked")


def make_exact(batch: int, dim: int, classes: int, dtype: torch.dtype, **options: Any) -> Problem:
    p = make_problem(batch, dim, 0, classes, dtype, corrected=False, **options)
    return p._replace(ids=None)


def expected_logits(p: Problem) -> Tensor:
    """[B, C] in float64."""
    wide = p.double()
    return F.linear(wide.input, wide.weight, wide.bias) * p.inv_temperature


def expected_rows(p: Problem) -> Tensor:
    """[3, B] in float64: loss, lse, target logit, zeros in ignored rows."""
    z = expected_logits(p)
    counted = p.target != p.ignore_index
    target_logit = z.gather(1, p.target.where(counted, 0)[:, None])[:, 0]
    loss = F.cross_entropy(z, p.target, ignore_index=p.ignore_index, reduction="none")
    return torch.stack((loss, z.logsumexp(1), target_logit)).where(counted, 0)


def assert_rows(got: Tensor, p: Problem, factor: float = 1) -> None:
    tolerance = factor * TOLERANCE.get(p.input.dtype, TOLERANCE["other"])
    want = expected_rows(p)
    torch.testing.assert_close(got[:3].double(), want, rtol=tolerance, atol=tolerance)
    best = expected_logits(p).argmax(1)
    wrong = (best != p.target) & (p.target != p.ignore_index)
    assert torch.equal(got[3].bool(), wrong)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_losses(bench: Bench, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    p = make_exact(*shape, dtype)
    assert_rows(loss_rows(bench, p), p)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits(bench: Bench, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """All classes, and a range of them that begins and ends anywhere."""
    p = make_exact(*shape, dtype, inv_temperature=1 / 0.7)
    want = expected_logits(p)
    classes = shape[2]
    for begin, end, padding in [(0, classes, 0), (classes // 3, classes - classes // 5, 3)]:
        got = logits(bench, p, begin, end, padding=padding)
        tolerance = TOLERANCE.get(dtype, TOLERANCE["other"])
        error = (got.double() - want[:, begin:end]).abs().max()
        assert error < tolerance


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_as_those_of_every_class_sampled_once(dtype: torch.dtype) -> None:
    """How the exact loss is differentiated: the sampled loss with hits removed is the same."""
    require("plain")
    p = make_exact(37, 24, 150, dtype)._replace(ids=torch.arange(150))
    p.target[5:9] = 3  # several rows with one target
    k = torch.rand(37).to(accumulator(dtype))
    got = loss_and_grads(Bench("plain"), p, k, sparse=False)
    leaves = [tensor.requires_grad_() for tensor in p.double()[:3]]
    loss = F.cross_entropy(F.linear(*leaves), p.target, reduction="none")
    want = torch.autograd.grad((k.double() * loss).sum(), leaves)
    tolerance = {torch.float64: 1e-13, torch.float32: 3e-6}.get(dtype, 1.2e-2)
    for a, b in zip(got[1:], want, strict=True):
        assert (a.double() - b).abs().max() < tolerance * b.abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(dtype: torch.dtype, options: dict[str, float]) -> None:
    require("plain")
    p = make_exact(70, 24, 150, dtype, **options)
    assert_rows(loss_rows(Bench("plain"), p), p, factor=8)  # z / 0.07 is large


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_splits_and_schedules(dtype: torch.dtype) -> None:
    """Schedules give the same bits, of logits whatever the splits; those only round lse apart."""
    require("plain")
    p = make_exact(70, 24, 900, dtype)
    first = None
    for schedule in SCHEDULES:
        bench = Bench("plain", schedule=schedule, seed=3)
        got = (loss_rows(bench, p, splits=5), logits(bench, p, 10, 890, splits=2))
        first = first or got
        assert all(torch.equal(a, b) for a, b in zip(got, first, strict=True))
    assert first is not None
    for splits in (1, 2, 8):
        assert_rows(loss_rows(Bench("plain"), p, splits=splits), p)
        assert torch.equal(logits(Bench("plain"), p, 10, 890, splits=splits), first[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_without_tensor_cores(dtype: torch.dtype) -> None:
    """16-bit types on a GPU before 8.0."""
    require("plain")
    p, path = make_exact(70, 40, 150, dtype), Path(dtype, major=7)
    assert_rows(loss_rows(Bench("plain"), p, path=path), p)
    error = (logits(Bench("plain"), p, 0, 150, path=path).double() - expected_logits(p)).abs().max()
    assert error < TOLERANCE["other"]


def test_tf32_is_asked_for() -> None:
    require("plain")
    p = make_exact(70, 64, 150, torch.float32)
    lse = expected_rows(p)[1]
    error = (loss_rows(Bench("plain"), p, path=TF32)[1] - lse).abs().max()
    assert 1e-6 < error < 2e-3
    error = (logits(Bench("plain"), p, 0, 150, path=TF32) - expected_logits(p)).abs().max()
    assert 1e-4 < error < 1e-2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small_losses_keep_their_digits(dtype: torch.dtype) -> None:
    """A loss of 1e-5 beside a logit of 16: their difference would have lost it."""
    require("plain")
    p = make_exact(8, 16, 200, dtype, bias=False)
    p.target.copy_(torch.arange(8))
    p.input.copy_(torch.eye(8, 16))
    p.weight[:8] = 16 * torch.eye(8, 16)
    loss = loss_rows(Bench("plain"), p)[0].double()
    want = expected_rows(p)[0]
    assert 0 < want.max() < 1e-4
    assert ((loss - want).abs() < 1e-5 * want).all()


def test_an_empty_batch_and_ignored_rows(bench: Bench) -> None:
    p = make_exact(0, 12, 30, torch.float32)
    assert loss_rows(bench, p).shape == (4, 0)
    assert logits(bench, p, 3, 9).shape == (0, 6)
    p = make_exact(3, 12, 30, torch.bfloat16)
    assert logits(bench, p, 7, 7).shape == (3, 0)
    p.target.fill_(-100)
    p.input.fill_(torch.nan)
    rows = loss_rows(bench, p)
    assert not rows[:2].any() and not rows[3].any()


def test_infinities_and_nan_stay_in_their_row() -> None:
    require("checked")
    p = make_exact(8, 8, 200, torch.float32, bias=False)
    p.target.copy_(torch.arange(8))
    good = loss_rows(Bench("checked"), p)
    p.input[0, 0] = torch.nan
    p.input[2] = 3e38  # z overflows to ±inf
    p.input[3, 5] = torch.inf
    loss = loss_rows(Bench("checked"), p)[0]
    assert loss[[0, 2, 3]].isnan().all()
    rest = [1, 4, 5, 6, 7]
    assert torch.equal(loss[rest], good[0, rest])


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_an_infinite_bias(value: float) -> None:
    """As F.cross_entropy: of the target and of another class, NaN but for classes switched off."""
    require("plain")
    p = make_exact(3, 8, 150, torch.float32)
    p.target.copy_(torch.tensor([0, 1, 2]))
    p.bias[1] = value
    loss = loss_rows(Bench("plain"), p)[0].double()
    torch.testing.assert_close(loss, expected_rows(p)[0], rtol=1e-5, atol=1e-5, equal_nan=True)
    p.bias.fill_(value)
    assert loss_rows(Bench("plain"), p)[0].isnan().all()


@pytest.mark.parametrize("bad", [-1, -2, 50, 2**40, -(2**62)])
def test_bad_targets_are_never_followed(bad: int) -> None:
    require("checked")
    p = make_exact(6, 8, 50, torch.bfloat16)
    p.target[4] = bad
    loss = loss_rows(Bench("checked"), p)[0]
    assert loss[4].isnan()
    assert loss[[0, 2, 3, 5]].isfinite().all()


def test_logits_past_class_2_31() -> None:
    """Offsets of rows are 64-bit: a matrix of 2^31 + 8 classes of one float16, mostly untouched."""
    require("plain")
    classes = 2**31 + 8
    weight = torch.empty(classes, 1, dtype=torch.float16)  # pages are taken when touched
    weight[-6:] = torch.randn(6, 1).half()
    p = make_exact(4, 1, 10, torch.float16, bias=False)
    got = logits(Bench("plain", bounds=False), p._replace(weight=weight), classes - 6, classes)
    small = p._replace(weight=weight[-6:].contiguous())
    assert torch.equal(got, logits(Bench("plain"), small, 0, 6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_global_traffic_is_what_the_model_says(dtype: torch.dtype) -> None:
    """Rows of H and W, in whole sectors; of logits, nothing but they is written."""
    require("checked")
    batch, dim, classes = 136, 144, 272
    p = make_exact(batch, dim, classes, dtype, bias=False)
    traffic = matmul_traffic(batch, classes, dim, dtype.itemsize)
    for run in (lambda bench: loss_rows(bench, p), lambda bench: logits(bench, p, 0, classes)):
        bench = Bench("checked", statistics=True)
        run(bench)
        lines = [line for line in bench.statistics() if "score_kernel" in line["kernel"]]
        lines = [line for line in lines if line["kind"].startswith("global")]
        assert (
            sum(line["bytes"] for line in lines if "operand.h" in line["file"]) == traffic.operands
        )
        assert all(line["transfers"] <= line["ideal"] for line in lines)
    stored = sum(line["bytes"] for line in lines if line["kind"] == "global store")
    assert stored == traffic.result
