"""The CUDA loss kernels, run by csrc/simt, against the float64 reference: every access checked, all
paths, schedules and layouts. What users see of them is tested with the CPU's kernels, by the
fixture `backend` (conftest.py)."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from helpers.simt_bench import SCHEDULES, Bench, require
from helpers.simt_loss import (
    DTYPES,
    GRAD_TOLERANCE,
    LOSS_TOLERANCE,
    OPTIONS,
    PATHS,
    Path,
    Problem,
    accumulator,
    layout,
    loss_and_grads,
    loss_rows,
    make_problem,
)
from sampled_softmax_cuda.reference import loss as reference

pytestmark = pytest.mark.usefixtures("executor")

TF32_TOLERANCE = 2e-3
# B, D, S, C: one of each; below, beside and above a tile of 64 or 128, a stage of 8, 16 or 32, a
# chunk of 16 bytes; S > C; rows that are not aligned.
SHAPES = [
    (1, 1, 1, 1),
    (7, 33, 129, 300),
    (130, 40, 257, 1000),
    (3, 100, 5, 4),
    (65, 16, 300, 50),
    (2, 257, 64, 70),
]


@pytest.fixture
def bench() -> Bench:
    require("checked")
    return Bench("checked")


def expected(p: Problem, row_scale: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """[4, B] and the gradients of input, weight and bias, by autograd in float64."""
    leaves = [
        None if tensor is None else tensor.detach().requires_grad_() for tensor in p.double()[:3]
    ]
    rows = torch.stack(reference.loss_rows(*leaves, *p.double()[3:]))
    if row_scale is None:
        return rows.detach(), []
    present = [leaf for leaf in leaves if leaf is not None]
    loss = (rows[0] * row_scale.double()).sum()
    return rows.detach(), list(torch.autograd.grad(loss, present))


def assert_rows(got: Tensor, want: Tensor, dtype: torch.dtype, factor: float = 1) -> None:
    tolerance = LOSS_TOLERANCE[dtype] * factor
    torch.testing.assert_close(got[:3].double(), want[:3], rtol=tolerance, atol=tolerance)
    assert torch.equal(got[3].double(), want[3])


def grad_tolerance(path: Path) -> float:
    return TF32_TOLERANCE if path.tf32 else GRAD_TOLERANCE[path.dtype]


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).abs().max() / want.abs().max().clamp(min=1e-30))


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients(bench: Bench, shape: tuple[int, ...], path: Path) -> None:
    p = make_problem(*shape, path.dtype)
    k = torch.rand(shape[0], generator=torch.Generator().manual_seed(1))
    k = k.to(accumulator(path.dtype))
    rows, want = expected(p, k)
    got = loss_and_grads(bench, p, k, path=path)
    assert_rows(got.rows, rows, path.dtype, factor=500 if path.tf32 else 1)
    for name, a, b in zip(("input", "weight", "bias"), got[1:], want, strict=True):
        assert relative_error(a, b) < grad_tolerance(path), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(dtype: torch.dtype, options: dict[str, float]) -> None:
    require("plain")
    p = make_problem(70, 24, 150, 40, dtype, **options)
    k = torch.full((70,), 1 / 70, dtype=accumulator(dtype))
    rows, want = expected(p, k)
    got = loss_and_grads(Bench("plain"), p, k, sparse=False)
    assert_rows(got.rows, rows, dtype, factor=4)  # z / 0.07 is large
    for a, b in zip(got[1:], want, strict=False):
        assert relative_error(a, b) < 4 * GRAD_TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_splits_chunks_and_schedules_change_nothing(dtype: torch.dtype) -> None:
    """Schedules give the same bits; splits and chunks may round sums differently."""
    require("plain")
    p = make_problem(200, 24, 900, 2000, dtype)
    k = torch.rand(200, generator=torch.Generator().manual_seed(1))
    _, want = expected(p, k)
    first = None
    for schedule in SCHEDULES:
        got = loss_and_grads(Bench("plain", schedule=schedule, seed=3), p, k, multiprocessors=40)
        first = first or got
        assert all(torch.equal(a, b) for a, b in zip(got, first, strict=True))
    for multiprocessors, chunk_rows in [(1, -1), (40, 128), (400, 37)]:
        got = loss_and_grads(
            Bench("plain"), p, k, multiprocessors=multiprocessors, chunk_rows=chunk_rows
        )
        for a, b in zip(got[1:], want, strict=True):
            assert relative_error(a, b) < GRAD_TOLERANCE[dtype]


@pytest.mark.parametrize(("dim", "padding"), [(1, 0), (68, 0), (130, 2), (136, 0), (251, 5)])
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_the_input_gradient_of_one_split_is_that_of_partial_sums(
    path: Path, dim: int, padding: int
) -> None:
    """Bit for bit: the second split's samples are masked, so that its sums are zeros. Tiles that
    are whole and cut off each way, rows that are aligned and not; a row that is ignored, whose H
    and k are NaN."""
    require("plain")
    bench, batch, samples = Bench("plain"), 150, 1040
    p = make_problem(batch, dim, samples, 3000, path.dtype, row_padding=padding)
    assert p.log_expected_count is not None
    p.log_expected_count[512:] = torch.inf
    p.input[1] = torch.nan
    p.target[3] = 5
    p.weight[5] = torch.nan  # of one row's target: no other has it
    p.target[4] = 2**40  # no class: the row's loss is NaN, and its gradient not read from anywhere
    p.ids[p.ids == 5] = 6
    k = torch.rand(batch, generator=torch.Generator().manual_seed(1)).to(accumulator(path.dtype))
    k[1] = torch.nan
    multiprocessors = 2 * -(-batch // 128) * -(-dim // 128)
    assert layout(bench, p, multiprocessors)[3] == 2
    merged, apart = (
        loss_and_grads(
            bench, p, k, path=path, multiprocessors=multiprocessors, input_splits=splits
        ).input
        for splits in (1, 2)
    )
    assert torch.equal(merged.isnan(), apart.isnan())
    assert torch.equal(merged.nan_to_num(7.0), apart.nan_to_num(7.0))
    assert not merged[1].any()
    assert merged[[3, 4]].isnan().all()
    assert merged[[0, 2, *range(5, batch)]].isfinite().all()


def test_the_gpu_and_the_caller_choose_the_path() -> None:
    """Products of float32 are rounded to tf32 where that is allowed and there; of 16-bit types,
    tensor cores add those of 16 at once, fused multiply-adds one by one."""
    require("plain")
    bench = Bench("plain")
    p = make_problem(70, 64, 150, 400, torch.float32)
    rows = expected(p)[0]

    def error(path: Path) -> float:
        return relative_error(loss_rows(bench, p, path=path)[0], rows[0])

    assert 1e-6 < error(Path(torch.float32, tf32=True)) < TF32_TOLERANCE
    assert error(Path(torch.float32)) < 1e-6
    assert error(Path(torch.float32, major=7, tf32=True)) < 1e-6
    for dtype in (torch.bfloat16, torch.float16):
        p = make_problem(70, 64, 150, 400, dtype)
        tensor_cores, plain = (loss_rows(bench, p, path=Path(dtype, m)) for m in (8, 7))
        assert not torch.equal(tensor_cores, plain)


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("ignore_index", [-100, 17])
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_ignored_rows_are_left_out_whatever_they_hold(
    path: Path, ignore_index: int, bad: float, sparse: bool
) -> None:
    """Padding: h, log n and k of ignored rows are garbage, and so is W of a class that stands for
    "ignored"; 0 times any of it would be NaN. Against the same rows in a batch without padding."""
    require("plain")
    dtype = path.dtype
    p = make_problem(70, 24, 60, 40, dtype, ignore_index=ignore_index)
    ignored = torch.arange(70) % 3 == 1
    p.target[p.target == 17] = 18
    p.ids[p.ids == 17] = 18
    p.target[ignored] = ignore_index
    p.input[ignored] = bad
    p.target_log_expected_count[ignored] = bad
    p.weight[17] = bad
    p.bias[17] = bad
    k = torch.rand(70, generator=torch.Generator().manual_seed(1)).to(accumulator(dtype))
    k[ignored] = bad
    k[1] = 1e30  # ignored: the others' products must not be scaled by it
    kept = p._replace(
        input=p.input[~ignored],
        target=p.target[~ignored],
        target_log_expected_count=p.target_log_expected_count[~ignored],
    )
    rows, (want_input, *want) = expected(kept, k[~ignored])
    got = loss_and_grads(Bench("plain"), p, k, sparse=sparse, path=path)
    assert not got.rows[:, ignored].any()
    assert not got.input[ignored].any()
    assert_rows(got.rows[:, ~ignored], rows, dtype, factor=500 if path.tf32 else 1)
    for a, b in zip((got.input[~ignored], *got[2:]), (want_input, *want), strict=True):
        assert relative_error(a, b) < grad_tolerance(path)


def test_a_bad_sampled_row_reaches_all_rows_but_ignored_ones() -> None:
    require("plain")
    p = make_problem(7, 24, 60, 400, torch.float32)  # row 1 is ignored
    p.weight[p.ids[5]] = torch.nan
    got = loss_and_grads(Bench("plain"), p, torch.ones(7))
    counted = torch.arange(7) != 1
    assert got.rows[0, counted].isnan().all()
    assert got.input[counted].isnan().all()
    assert not got.rows[:, 1].any()
    assert not got.input[1].any()


def test_an_empty_batch_and_no_samples(bench: Bench) -> None:
    empty = make_problem(0, 12, 9, 30, torch.float32)
    got = loss_and_grads(bench, empty, torch.ones(0))
    assert got.rows.shape == (4, 0)
    assert not got.weight.any()
    alone = make_problem(3, 12, 0, 30, torch.float32)
    got = loss_and_grads(bench, alone, torch.ones(3))
    assert not got.rows[0].any()
    assert not got.input.any()


def test_infinities_and_nan() -> None:
    require("checked")
    p = make_problem(6, 8, 20, 50, torch.float32, bias=False, corrected=False)
    p.target.copy_(torch.arange(6))
    p.ids.copy_(torch.arange(20) + 10)
    p.input[0, 0] = torch.nan
    p.input[2] = 3e38  # z overflows to ±inf
    p.weight[3] = -torch.inf
    p.input[3] = 1.0  # its own target's logit is −inf: an infinite loss
    loss = loss_rows(Bench("checked"), p)[0]
    want = expected(p)[0][0]
    assert torch.isnan(loss[0])
    assert torch.isnan(loss[2]) or torch.isinf(loss[2])
    assert loss[3] == torch.inf
    rest = [1, 4, 5]
    torch.testing.assert_close(loss[rest].double(), want[rest], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("remove", [True, False], ids=["removed", "kept"])
@pytest.mark.parametrize("path", [Path(torch.bfloat16), Path(torch.float64)], ids=str)
def test_hits_of_targets_that_many_rows_share(bench: Bench, path: Path, remove: bool) -> None:
    """All targets of a block in few classes, all of them sampled often, in several tiles."""
    p = make_problem(150, 16, 300, 50, path.dtype)
    p.target.copy_(torch.where(torch.arange(150) % 5 == 0, torch.arange(150) // 5, 7))
    p.ids.copy_(torch.arange(300) % 40)
    p.ids[130:200] = 7
    p = p._replace(remove_accidental_hits=remove)
    assert_rows(loss_rows(bench, p, path=path), expected(p)[0], path.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_biases_at_the_ends_of_float32(bench: Bench, dtype: torch.dtype) -> None:
    """Logits that times log2 e are beyond float32: masked classes, and one above all others."""
    p = make_problem(6, 8, 400, 50, dtype, corrected=False)
    assert p.bias is not None
    p.target.copy_(torch.arange(6))
    p.ids.copy_(torch.arange(400) % 40 + 10)
    p.bias[12:] = -3.4e38
    rows = loss_rows(bench, p)
    assert rows.isfinite().all()
    assert_rows(rows, expected(p)[0], dtype)
    p.ids.copy_(torch.arange(400) % 40 + 9)
    p.ids[1:] = 20
    p.bias[9] = 3e38
    assert_rows(loss_rows(bench, p), expected(p)[0], dtype)


def test_threads_with_several_accesses_to_a_row() -> None:
    """So many logits, and rows of the class gradients, that a thread of csrc/cuda/device/row_grid.h
    comes back to its row."""
    require("plain")
    p = make_problem(9, 8, 2**17 + 13, 2**18, torch.float32)
    k = torch.rand(9, generator=torch.Generator().manual_seed(1))
    got = loss_and_grads(Bench("plain"), p, k)
    rows, want = expected(p, k)
    assert_rows(got.rows, rows, torch.float32)
    for ours, truth in zip(got[1:], want, strict=True):
        assert relative_error(ours, truth) < GRAD_TOLERANCE[torch.float32]


@pytest.mark.parametrize("bad", [-1, 50, 2**40, -(2**62)])
def test_bad_ids_are_never_followed(bad: int) -> None:
    """The checked build would see a stray access; the results show that something is wrong."""
    require("checked")
    p = make_problem(6, 8, 20, 50, torch.bfloat16)
    p.target[4] = bad
    got = loss_and_grads(Bench("checked"), p, torch.ones(6))
    assert torch.isnan(got.rows[0, 4])
    assert torch.isfinite(got.rows[0, [0, 2, 3, 5]]).all()
    p = make_problem(6, 8, 20, 50, torch.bfloat16)
    p.ids[3] = bad
    loss = loss_rows(Bench("checked"), p)[0]
    assert torch.isnan(loss[[0, 2, 3, 4, 5]]).all()


def test_classes_past_2_31() -> None:
    """Offsets of rows are 64-bit: a matrix of 2^31 + 8 classes of one float16, mostly untouched."""
    require("plain")
    classes = 2**31 + 8
    weight = torch.empty(classes, 1, dtype=torch.float16)  # pages are taken when touched
    p = make_problem(4, 1, 6, 10, torch.float16, bias=False)
    high = torch.arange(6) + classes - 6
    weight[high] = torch.randn(6, 1).half()
    weight[:10] = p.weight
    p = p._replace(weight=weight, ids=high, target=torch.tensor([3, classes - 1, 5, classes - 3]))
    small = p._replace(
        weight=torch.cat((weight[:10], weight[high])),
        ids=torch.arange(6) + 10,
        target=torch.tensor([3, 15, 5, 13]),
    )
    rows = loss_rows(Bench("plain", bounds=False), p)
    assert_rows(rows, expected(small)[0], torch.float16)


@pytest.mark.slow
def test_more_tiles_of_samples_than_a_grid_has_blocks_along_y() -> None:
    """65535 of them, here of 64 samples; without rows, so that only Pᵀ·H and what follows run."""
    require("plain")
    bench = Bench("plain")
    if bench.compiled_by_nvcc:
        pytest.skip("launches are the same, and blocks are slow")
    p = make_problem(0, 1, 64 * 65535 + 3, 10, torch.float64)
    got = loss_and_grads(bench, p, torch.ones(0, dtype=torch.float64))
    assert torch.equal(got.weight, torch.zeros(10, 1, dtype=torch.float64))


def test_the_workspace_is_bounded() -> None:
    """64 MiB, the sampled rows' gradients and a number per row; more for a single row alone."""
    require("plain")
    bench = Bench("plain")
    shapes = [
        (1 << 20, 64, 8192),
        (8192, 1024, 8192),
        (64, 64, 1 << 20),
        (4096, 8, 4095),
        (3, 7, 5),
    ]
    for dtype, shape, multiprocessors in product(DTYPES, shapes, (1, 20, 132, 256)):
        (batch, dim, samples), size = shape, accumulator(dtype).itemsize
        p = make_problem(0, 1, 0, 1, dtype)._replace(
            input=torch.empty(batch, dim, dtype=dtype), ids=torch.empty(samples, dtype=torch.int64)
        )
        bytes_, chunk_rows, score_splits, _ = layout(bench, p, multiprocessors)
        fixed = (samples * (dim + 1) + batch) * size
        assert 1 <= chunk_rows <= batch
        assert bytes_ - fixed <= 64 << 20
        assert chunk_rows == batch or bytes_ - fixed > 32 << 20, "a chunk uses what it may"
        assert chunk_rows < 128 or chunk_rows == batch or chunk_rows % 128 == 0
        assert chunk_rows * score_splits <= 256 * multiprocessors + chunk_rows
    p = p._replace(ids=torch.empty(1 << 25, dtype=torch.int64))
    assert layout(bench, p, 132)[1] == 1
