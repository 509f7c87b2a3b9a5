"""The CUDA kernels of general negatives, run by csrc/simt with every access checked: schedules,
chunks, layouts and hits of all kinds. Values of all options are tested with the CPU's kernels, by
the fixture `backend` (conftest.py)."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import simt_loss
from helpers.simt_bench import SCHEDULES, Bench, require
from helpers.simt_loss import DTYPES, LOSS_TOLERANCE, PATHS, Path, accumulator
from helpers.simt_negatives import Options, Problem, layouts, make_problem, run
from sampled_softmax_cuda.reference.negatives import negative_rows

pytestmark = pytest.mark.usefixtures("executor")

GRAD_TOLERANCE = simt_loss.GRAD_TOLERANCE | {torch.float32: 4e-6}
TF32_TOLERANCE = 3e-3  # products are rounded to 11 bits
# B, D, S, C, K: one of each; beside tiles of 64 and 128 and words of 32; hits in several rounds;
# more rows and samples than a block looks hits up for. Rows are aligned to one element, to 4 or 8
# bytes and to 16, which are kernels of their own.
SHAPES = [
    (1, 1, 1, 1, 1),
    (7, 33, 129, 300, 3),
    (130, 42, 257, 90, 2),
    (6, 8, 150, 2000, 700),
    (40, 8, 700, 90, 20),
]


OPTIONS = [Options(), Options(softcap=2.0, remove_hits=False), Options(softcap=5.0, sigmoid=True)]


def expected(p: Problem, o: Options, row_scale: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Loss and peak, and the gradients, by autograd in float64."""
    wide: dict[str, Any] = {
        name: t.double() if t is not None and t.is_floating_point() else t
        for name, t in p._asdict().items()
    }
    leaves = [wide[name].requires_grad_() for name in ("input", "weight", "bias")]
    loss, peak = negative_rows(**wide, **o._asdict())
    grads = torch.autograd.grad((loss * row_scale.double()).sum(), leaves)
    return [loss.detach(), peak], list(grads)


def assert_close(got: list[Tensor], want: list[Tensor], tolerance: float) -> None:
    for a, b in zip(got, want, strict=True):
        finite = b.isfinite()  # where all samples are left out, the peak is -inf
        assert torch.equal(a[~finite].double(), b[~finite])
        error = (a.double() - b)[finite].abs()
        assert error.numel() == 0 or error.max() <= tolerance * b[finite].abs().max().clamp(min=0.1)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=["softmax", "hits kept", "sigmoid"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape: tuple[int, ...], options: Options, path: Path) -> None:
    require("checked")
    dtype = path.dtype
    p = make_problem(*shape, dtype)
    k = torch.rand(shape[0], generator=torch.Generator().manual_seed(1)).to(accumulator(dtype))
    want, want_grads = expected(p, options, k)
    got = run(Bench("checked"), p, options, path=path)
    assert_close(got, want, TF32_TOLERANCE if path.tf32 else LOSS_TOLERANCE[dtype])
    got = run(Bench("checked"), p, options, k, path=path)
    assert_close(got, want_grads, TF32_TOLERANCE if path.tf32 else GRAD_TOLERANCE[dtype])


@pytest.mark.parametrize("options", OPTIONS, ids=["softmax", "hits kept", "sigmoid"])
def test_schedules_change_nothing_and_chunks_and_splits_only_round(options: Options) -> None:
    require("plain")
    p = make_problem(70, 24, 300, 2000, 260, torch.bfloat16)
    k = torch.rand(70, generator=torch.Generator().manual_seed(1))
    want, want_grads = expected(p, options, k)
    first = None
    for schedule in SCHEDULES:
        bench = Bench("plain", schedule=schedule, seed=3)
        got = [
            *run(bench, p, options, multiprocessors=40),
            *run(bench, p, options, k, multiprocessors=40),
        ]
        first = first or got
        assert all(torch.equal(a, b) for a, b in zip(got, first, strict=True))
    for multiprocessors, chunk_rows in [(1, -1), (40, 128), (400, 37)]:
        how = {"multiprocessors": multiprocessors, "chunk_rows": chunk_rows}
        assert_close(run(Bench("plain"), p, options, **how), want, LOSS_TOLERANCE[torch.bfloat16])
        got = run(Bench("plain"), p, options, k, **how)
        assert_close(got, want_grads, GRAD_TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("bad", [-1, -2, 90, 2**40, -(2**62)])
def test_bad_ids_are_never_followed(bad: int) -> None:
    """As a sample an id that is no class gives NaN, as a hit it is none."""
    require("checked")
    p = make_problem(6, 8, 150, 90, 3, torch.bfloat16)
    good = run(Bench("checked"), p, Options())
    hits = torch.cat((p.hits, torch.full((6, 1), bad)), dim=1)
    assert torch.equal(run(Bench("checked"), p._replace(hits=hits), Options())[0], good[0])
    p.ids[3] = bad
    loss = run(Bench("checked"), p, Options())[0]
    assert loss[p.counted].isnan().all()
    assert not loss[~p.counted].any()
    run(Bench("checked"), p, Options(), torch.ones(6))


def test_large_logits_of_sigmoids_neither_overflow_nor_lose_small_terms() -> None:
    require("plain")
    p = make_problem(2, 1, 64, 64, 0, torch.float32)
    p = p._replace(bias=None, counted=None, log_expected_count=None, ids=torch.arange(64))
    p.weight[:, 0] = torch.linspace(-120, 120, 64)
    for scale in (1.0, 1e-6):
        p.input.copy_(torch.tensor([[1.0], [0.0]]))
        p.weight.mul_(1 if scale == 1.0 else 0).sub_(0 if scale == 1.0 else 18)
        loss = run(Bench("plain"), p, Options(1.0, sigmoid=True))[0].double()
        z = p.input.double() @ p.weight.double().T
        want = torch.nn.functional.softplus(z, threshold=80).sum(1)
        assert ((loss - want).abs() <= 1e-6 * want).all()


def test_the_workspaces_are_bounded() -> None:
    """64 MiB, beside the sampled rows' gradients and a number per row."""
    require("plain")
    bench = Bench("plain")
    shapes = [(1 << 20, 64, 8192), (8192, 1024, 8192), (64, 64, 1 << 20), (3, 7, 5)]
    for dtype, shape, multiprocessors in product(DTYPES, shapes, (1, 132, 256)):
        (batch, dim, samples), size = shape, accumulator(dtype).itemsize
        row_bytes, chunk_rows, grad_bytes, grad_rows = layouts(bench, shape, dtype, multiprocessors)
        for bytes_, rows, fixed in [
            (row_bytes, chunk_rows, 0),
            (grad_bytes, grad_rows, (samples * (dim + 1) + batch) * size),
        ]:
            assert 1 <= rows <= batch
            assert bytes_ - fixed <= 64 << 20
            assert rows == batch or bytes_ - fixed > 32 << 20, "a chunk uses what it may"
