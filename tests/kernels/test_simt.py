"""csrc/simt runs correct kernels correctly: in every order of threads, with and without checks.

An executor of PTX agrees on the same kernels as nvcc compiles them, twins of instructions included.
SSC_SIMT_VARIANTS names the builds to test; test_simt_asan.py runs this file with "asan".
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.simt_bench import PTX_MAJOR, SCHEDULES, Bench, SimtError, require

pytestmark = pytest.mark.usefixtures("executor")

VARIANTS = os.environ.get("SSC_SIMT_VARIANTS", "plain,checked").split(",")


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    require(request.param)
    return request.param


# warps.cu is compiled for 8.0 and later, the matmuls have nothing to multiply by before; 7.5 has
# less shared memory. csrc/simt runs them all.
since_8_0 = pytest.mark.usefixtures("_since_8_0")


@pytest.fixture
def _since_8_0(executor: str) -> None:
    if executor == "ptx" and PTX_MAJOR < 8:
        pytest.skip("needs compute capability 8.0")


@pytest.fixture(params=SCHEDULES)
def bench(request: pytest.FixtureRequest, variant: str) -> Bench:
    return Bench(variant, schedule=request.param, seed=7)


def integers(n: int, low: int = -100, high: int = 100) -> torch.Tensor:
    return torch.randint(low, high, (n,), dtype=torch.int32)


@pytest.mark.parametrize("n", [1, 127, 128, 5000])  # fewer and more than the grid's 384 threads
def test_grid_stride_loop(bench: Bench, n: int) -> None:
    x = torch.randn(n)
    expected = 3 * x
    bench.call("scale", bench.buffer("x", x), n, 3.0, 3)
    assert torch.equal(x, expected)


def test_tree_reduction(bench: Bench) -> None:
    x = integers(5 * 256).float()
    sums = bench.buffer("sums", torch.full((5,), torch.nan), "out")
    bench.call("tree_sum", bench.buffer("x", x, "in"), sums, 5, 0)
    assert torch.equal(sums, x.view(5, 256).sum(1))


@pytest.mark.parametrize("n", [1, 31, 32, 33, 700])
def test_reversal_through_dynamic_shared_memory(bench: Bench, n: int) -> None:
    x, y = integers(n), integers(n)
    bench.call("reverse", bench.buffer("x", x, "in"), bench.buffer("y", y, "out"), n, 4 * n)
    assert torch.equal(y, x.flip(0))


@since_8_0
def test_large_dynamic_shared_memory(bench: Bench) -> None:
    x, y = integers(50), integers(50)
    bench.call("reverse_large", bench.buffer("x", x, "in"), bench.buffer("y", y, "out"), 50, 99_000)
    assert torch.equal(y, x.flip(0))
    with pytest.raises(SimtError):
        bench.call("reverse_large", x, y, 50, 232_449)  # more than any GPU has


def test_voting_barriers(bench: Bench) -> None:
    x = integers(3 * 96)
    x[:96] = 1
    x[96:192] = -1
    answers = bench.buffer("answers", torch.zeros(3 * 96, 3, dtype=torch.int32), "out")
    bench.call("barrier_votes", bench.buffer("x", x, "in"), answers, 3)
    for block in range(3):
        positive = x[96 * block : 96 * (block + 1)] > 0
        expected = torch.tensor([positive.sum(), positive.all(), positive.any()])
        got = answers[96 * block : 96 * (block + 1)]
        assert torch.equal(got, expected.int().expand(96, 3))


@since_8_0
@pytest.mark.parametrize("n", [32, 1, 65, 1000, 1024])
def test_scan_by_shuffles(bench: Bench, n: int) -> None:
    x, y = integers(n), integers(n)
    bench.call("warp_scan", bench.buffer("x", x, "in"), bench.buffer("y", y, "out"), n)
    assert torch.equal(y, x.cumsum(0).int())


@since_8_0
@pytest.mark.parametrize("width", [1, 2, 8, 32])
def test_segments_of_a_warp(bench: Bench, width: int) -> None:
    x = torch.arange(32, dtype=torch.float64) ** 2
    y, first = torch.zeros(2, 32, dtype=torch.float64)
    bench.buffer("y", y, "out")
    bench.buffer("first", first, "out")
    bench.call("segments", bench.buffer("x", x, "in"), y, first, width)
    segments = x.view(-1, width)
    assert torch.equal(y.view(-1, width), segments.sum(1, keepdim=True).expand_as(segments))
    assert torch.equal(first.view(-1, width), segments[:, :1].expand_as(segments))


@since_8_0
@pytest.mark.parametrize("same", [False, True])
def test_every_collective(bench: Bench, same: bool) -> None:
    x = integers(32)
    if same:
        x.fill_(int(x[0]))
    y = bench.buffer("y", torch.zeros(11, 32, dtype=torch.int32), "out")
    bench.call("collectives", bench.buffer("x", x, "in"), y)
    v = x.numpy()
    lanes = np.arange(32)

    def bits(where: np.ndarray) -> int:
        return int((where.astype(np.uint64) << lanes.astype(np.uint64)).sum())

    down = np.where(lanes + 5 < 32, np.roll(v, -5), v)
    expected = [
        bits(v > 0),
        (v > 90).any(),
        (v > -100).all(),
        [bits((v & 7) == (a & 7)) for a in v],
        2**32 - 1 if same else 0,
        v.sum(),
        v.min(),
        v.max(),
        v.view(np.uint32).max(),
        np.bitwise_or.reduce(v.view(np.uint32)),
        down,
    ]
    for row, answer in enumerate(expected):
        want = np.broadcast_to(np.asarray(answer).astype(np.int64), 32).astype(np.uint32)
        assert (y[row].numpy().view(np.uint32) == want).all(), row


@since_8_0
def test_lanes_that_left_early_are_not_in_the_masks(bench: Bench) -> None:
    x = integers(32)
    y = bench.buffer("y", torch.zeros(16, dtype=torch.int32), "out")
    count = bench.buffer("count", torch.zeros(1, dtype=torch.int32), "out")
    bench.call("compact", bench.buffer("x", x, "in"), y, count)
    expected = x[::2][x[::2] > 0]
    assert int(count) == len(expected)
    assert torch.equal(y[: len(expected)], expected)


@since_8_0
def test_two_groups_of_lanes_with_masks_of_their_own(bench: Bench) -> None:
    x = integers(64).float()
    sums = bench.buffer("sums", torch.zeros(64), "out")
    bench.call("named_halves", bench.buffer("x", x, "in"), sums)
    expected = torch.cat(
        [torch.cat([w[:12].sum().repeat(12), 2 * w[12:].sum().repeat(20)]) for w in x.view(2, 32)]
    )
    assert torch.equal(sums, expected)


@since_8_0
def test_rotation_ordered_by_syncwarp(bench: Bench) -> None:
    x, y = integers(32), integers(32)
    bench.call("rotate", bench.buffer("x", x, "in"), bench.buffer("y", y, "out"), 0)
    assert torch.equal(y, x.roll(-1))


@pytest.mark.parametrize(("n", "blocks"), [(1, 1), (1000, 3), (64, 2)])
def test_histogram_in_shared_memory(bench: Bench, n: int, blocks: int) -> None:
    x = integers(n, 0, 17)
    bins = bench.buffer("bins", torch.zeros(17, dtype=torch.int32))
    bench.call("histogram", bench.buffer("x", x, "in"), bins, n, 17, blocks)
    assert torch.equal(bins, torch.bincount(x, minlength=17).int())


@since_8_0
def test_histogram_of_warp_aggregated_atomics(bench: Bench) -> None:
    x = integers(150, 0, 5)
    bins = bench.buffer("bins", torch.zeros(5, dtype=torch.int32))
    bench.call("aggregated_histogram", bench.buffer("x", x, "in"), bins, 150, 3)
    assert torch.equal(bins, torch.bincount(x, minlength=5).int())


def test_every_atomic(bench: Bench) -> None:
    n = 192
    x = integers(n)
    ints = bench.buffer("ints", torch.zeros(5, dtype=torch.int32))
    words = bench.buffer("words", torch.tensor([-1, 0, 0, 0], dtype=torch.int32))
    sums = bench.buffer("sums", torch.tensor([0.0, -torch.inf]))
    wide = bench.buffer("wide", torch.zeros(2, dtype=torch.int64))
    bench.call("atomics", bench.buffer("x", x, "in"), ints, words, sums, wide, n // 64)
    v = x.numpy()
    total, low, high = int(v.sum()), min(0, int(v.min())), max(0, int(v.max()))
    assert ints.tolist() == [total, -total, low, high, np.bitwise_xor.reduce(v)]
    assert words.tolist() == [
        np.bitwise_and.reduce(v),
        np.bitwise_or.reduce(v),
        n % 5,  # counts 0 to 4
        -n % 7,  # from 0 down to 6 and on
    ]
    assert sums.tolist() == [float(total), 0.5 * v.max()]
    assert wide.tolist() == [int(v.max()) + 100, n << 33]


@pytest.mark.parametrize("fence_by_one", [False, True])
def test_last_block_adds_up(bench: Bench, fence_by_one: bool) -> None:
    x = integers(5 * 64).float()
    partial = bench.buffer("partial", torch.zeros(5 * 64), "out")
    counter = bench.buffer("counter", torch.zeros(1, dtype=torch.int32))
    total = bench.buffer("total", torch.zeros(1))
    bench.buffer("x", x, "in")
    bench.call("last_block", x, partial, counter, total, 5, 3 if fence_by_one else 0)
    assert int(counter) == 5
    assert float(total) == 2 * float(x.sum())


def test_kernels_in_sequence_see_each_others_results(bench: Bench) -> None:
    x = integers(333).float()
    partial = bench.buffer("partial", torch.zeros(333), "out")
    total = bench.buffer("total", torch.zeros(1), "out")
    bench.call("two_kernels", bench.buffer("x", x, "in"), partial, total, 333)
    assert float(total) == float((x * x).sum())


@pytest.mark.parametrize("shape", [(1, 1, 1), (19, 7, 5), (8, 3, 2)])
def test_three_dimensional_grid(bench: Bench, shape: tuple[int, int, int]) -> None:
    nx, ny, nz = shape
    y = bench.buffer("y", torch.zeros(nz * ny * nx, dtype=torch.int32), "out")
    bench.call("index3d", y, nx, ny, nz)
    assert torch.equal(y, torch.arange(nz * ny * nx, dtype=torch.int32))


@pytest.mark.parametrize("name", ["transpose", "transpose_unpadded"])
def test_transpose(bench: Bench, name: str) -> None:
    x = torch.randn(96, 96)
    y = bench.buffer("y", torch.zeros(96, 96), "out")
    bench.call(name, bench.buffer("x", x, "in"), y, 96)
    assert torch.equal(y, x.T)


def test_gather_by_16_bytes(bench: Bench) -> None:
    x = torch.randn(50, 132)
    ids = torch.tensor([3, 49, 0, 3, 17])
    y = bench.buffer("y", torch.zeros(5, 132), "out")
    bench.call("gather", bench.buffer("x", x, "in"), bench.buffer("ids", ids, "in"), y, 5, 132)
    assert torch.equal(y, x[ids])


def test_local_arrays_are_the_threads_own(bench: Bench) -> None:
    x = integers(40, 0, 3)
    y = bench.buffer("y", torch.zeros(32, dtype=torch.int32), "out")
    bench.call("local", bench.buffer("x", x, "in"), y, 40)
    powers = 3 ** np.arange(40, dtype=np.uint64)
    for t in range(32):
        sum_ = (np.roll(x.numpy(), -t).astype(np.uint64) * powers).sum()
        assert np.uint32(sum_ & np.uint64(2**32 - 1)) == y.numpy().view(np.uint32)[t]


def test_memcpy_inside_a_kernel(bench: Bench) -> None:
    x = integers(33, 0, 100).to(torch.int8)
    y = bench.buffer("y", torch.zeros(33, dtype=torch.int8), "out")
    bench.call("memcpy", bench.buffer("x", x, "in"), y, 33)
    assert torch.equal(y, x)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_cp_async_or_zeros(bench: Bench, size: int) -> None:
    x = integers(32 * size, 1, 100).to(torch.int8)
    y = bench.buffer("y", torch.zeros(32 * size, dtype=torch.int8), "out")
    bench.call(f"or_zero_{size}", bench.buffer("x", x, "in"), y)
    expected = x.clone().view(32, size)
    expected[::3] = 0
    assert torch.equal(y.view(32, size), expected)


@pytest.mark.parametrize("transposed", [0, 1])
def test_ldmatrix(bench: Bench, transposed: int) -> None:
    x = torch.arange(32 * 8, dtype=torch.int16).view(32, 8)
    y = bench.buffer("y", torch.zeros(4, 32, dtype=torch.int32), "out")
    bench.call("ldmatrix", bench.buffer("x", x, "in"), y, 8, transposed)
    for m in range(4):
        matrix = x[8 * m : 8 * m + 8]
        matrix = matrix.T if transposed else matrix
        # A lane holds two neighbours in a row, the first in the low half; four lanes to a row.
        assert torch.equal(y[m].view(torch.int16).view(8, 8), matrix)


# Whole tiles; one row and one chunk; ragged in every dimension.
@since_8_0
@pytest.mark.parametrize("shape", [(64, 32, 32, 32), (1, 1, 8, 8), (70, 45, 99, 104)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pipelined_matmul(
    bench: Bench, dtype: torch.dtype, shape: tuple[int, int, int, int]
) -> None:
    rows, columns, depth, pitch = shape
    a, b = torch.randn(rows, pitch).to(dtype), torch.randn(columns, pitch).to(dtype)
    c = bench.buffer("c", torch.full((rows, columns), torch.nan), "out")
    name = "gemm_f16" if dtype == torch.float16 else "gemm_bf16"
    bench.buffer("a", a, "in")
    bench.call(name, a, bench.buffer("b", b, "in"), c, rows, columns, depth, pitch)
    truth = a[:, :depth].double() @ b[:, :depth].double().T
    scale = a[:, :depth].double().abs() @ b[:, :depth].double().abs().T
    # One rounding to float32 per step of 16, each at most 2^-24 of the sum of absolute values.
    assert ((c - truth).abs() <= (depth / 16 + 1) * 2.0**-24 * scale).all()


@since_8_0
@pytest.mark.parametrize("shape", [(16, 8, 8, 8), (30, 13, 19, 20)])
def test_tf32_matmul(bench: Bench, shape: tuple[int, int, int, int]) -> None:
    rows, columns, depth, pitch = shape
    a, b = torch.randn(rows, pitch), torch.randn(columns, pitch)
    c = bench.buffer("c", torch.full((rows, columns), torch.nan), "out")
    bench.buffer("a", a, "in")
    bench.call("gemm_tf32", a, bench.buffer("b", b, "in"), c, rows, columns, depth, pitch)

    def rounded(x: torch.Tensor) -> torch.Tensor:  # to 11 bits, ties away from zero
        mantissa, exponent = torch.frexp(x[:, :depth].double())
        ties_away = torch.sign(mantissa) * torch.floor(mantissa.abs() * 2**11 + 0.5)
        return torch.ldexp(ties_away, exponent - 11)

    truth = rounded(a) @ rounded(b).T
    scale = rounded(a).abs() @ rounded(b).abs().T
    assert ((c - truth).abs() <= (depth / 8 + 1) * 2.0**-24 * scale).all()


@since_8_0
@given(n=st.integers(1, 1024), blocks=st.integers(1, 4), seed=st.integers(0, 2**32))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_size_and_shuffle(n: int, blocks: int, seed: int) -> None:
    require(VARIANTS[-1])
    bench = Bench(VARIANTS[-1], schedule="shuffled", seed=seed)
    x = torch.arange(n, dtype=torch.int32) * 7 % 13
    bins = bench.buffer("bins", torch.zeros(13, dtype=torch.int32))
    bench.call("histogram", bench.buffer("x", x, "in"), bins, n, 13, blocks)
    assert torch.equal(bins, torch.bincount(x, minlength=13).int())
    y = bench.buffer("y", torch.zeros(n, dtype=torch.int32), "out")
    bench.call("warp_scan", x, y, n)
    assert torch.equal(y, x.cumsum(0).int())
