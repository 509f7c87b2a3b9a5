"""The counts of csrc/simt, sectors of global memory and wavefronts of shared memory, by hand.

A sector is 32 bytes; torch's CPU tensors start at multiples of 64. A wavefront serves one 4-byte
word from each of the 32 banks, for 32 lanes with words of 4 bytes, 16 lanes with 8, 8 with 16.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.simt_bench import ROOT, SCHEDULES, Bench, require


@pytest.fixture(params=SCHEDULES)
def bench(request: pytest.FixtureRequest) -> Bench:
    require("checked")
    return Bench("checked", schedule=request.param, seed=11, statistics=True)


def counted(bench: Bench, kind: str, source: str, text: str) -> dict[str, Any]:
    """The only entry of this kind at the only line of tests/simt/<source> that contains text."""
    lines = (ROOT / "tests/simt" / source).read_text(encoding="utf-8").splitlines()
    (number,) = [n for n, line in enumerate(lines, 1) if text in line]
    (entry,) = [e for e in bench.statistics() if e["kind"] == kind and e["line"] == number]
    assert entry["file"] == f"tests/simt/{source}"
    return entry


def numbers(entry: dict[str, Any]) -> tuple[int, ...]:
    return tuple(entry[key] for key in ("instructions", "lanes", "bytes", "transfers", "ideal"))


@pytest.mark.parametrize(("name", "conflicts"), [("transpose", 1), ("transpose_unpadded", 32)])
def test_transpose(bench: Bench, name: str, conflicts: int) -> None:
    x = bench.buffer("x", torch.randn(64, 64), "in")
    y = bench.buffer("y", torch.zeros(64, 64), "out")
    bench.call(name, x, y, 64)
    # 4 blocks of 8 warps, 4 rows each: 128 instructions of 32 lanes; 128 bytes are 4 sectors.
    whole = (128, 4096, 16384, 512, 512)
    row = "tile[r][threadIdx.x] = in["
    assert numbers(counted(bench, "global load", "memory.cu", row)) == whole
    assert numbers(counted(bench, "shared store", "memory.cu", row)) == (128, 4096, 16384, 128, 128)
    column = "= tile[threadIdx.x][r]"
    assert numbers(counted(bench, "global store", "memory.cu", column)) == whole
    load = counted(bench, "shared load", "memory.cu", column)
    assert numbers(load) == (128, 4096, 16384, 128 * conflicts, 128)
    assert f"transpose_kernel<{33 if conflicts == 1 else 32}>" in load["kernel"]


def test_gather_of_rows_that_start_within_a_sector(bench: Bench) -> None:
    # A row has 528 bytes, 16.5 sectors: odd rows start in the middle of one. A warp reads it by an
    # instruction of 32 lanes and one of a single lane.
    x = bench.buffer("x", torch.randn(50, 132), "in")
    ids = bench.buffer("ids", torch.tensor([3, 49, 0, 3, 17]), "in")
    y = bench.buffer("y", torch.zeros(5, 132), "out")
    bench.call("gather", x, ids, y, 5, 132)
    copy = "cuda::load16_cached(from + i)"
    load = counted(bench, "global load", "memory.cu", copy)
    assert numbers(load) == (10, 165, 5 * 528, 4 * 17 + 16 + 5, 5 * 17)
    store = counted(bench, "global store", "memory.cu", copy)
    assert numbers(store) == (10, 165, 5 * 528, 2 * 17 + 3 * 16 + 5, 5 * 17)
    # All lanes of a warp want the same eight bytes.
    assert numbers(counted(bench, "global load", "memory.cu", "x + ids[row] * pitch")) == (
        5, 160, 160 * 8, 5, 5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("size", "stride", "sectors", "ideal_sectors", "wavefronts", "ideal_wavefronts"),
    [
        (2, 1, 2, 2, 1, 1),  # 16 words
        (2, 2, 4, 2, 1, 1),
        (4, 1, 4, 4, 1, 1),
        (4, 2, 8, 4, 2, 1),
        (4, 8, 32, 4, 8, 1),
        (4, 32, 32, 4, 32, 1),  # all in one bank
        (4, 33, 32, 4, 1, 1),
        (8, 1, 8, 8, 2, 2),
        (8, 2, 16, 8, 4, 2),
        (16, 1, 16, 16, 4, 4),
        (16, 2, 32, 16, 8, 4),
        (16, 3, 32, 16, 4, 4),
    ],
)
def test_strides(
    bench: Bench, size: int, stride: int, sectors: int, ideal_sectors: int, wavefronts: int,
    ideal_wavefronts: int,
) -> None:  # fmt: skip
    x = bench.buffer("x", torch.zeros(32 * stride * size, dtype=torch.int8), "in")
    y = bench.buffer("y", torch.zeros(64 * size, dtype=torch.int8), "out")
    bench.call(f"strided_{size}", x, y, stride)
    load = counted(bench, "global load", "memory.cu", "from_global = x[")
    assert numbers(load) == (1, 32, 32 * size, sectors, ideal_sectors)
    load = counted(bench, "shared load", "memory.cu", "from_shared = tile[")
    assert numbers(load) == (1, 32, 32 * size, wavefronts, ideal_wavefronts)


@pytest.mark.parametrize(("pitch", "conflicts"), [(8, 1), (32, 4), (64, 8), (72, 1)])
def test_ldmatrix(bench: Bench, pitch: int, conflicts: int) -> None:
    x = bench.buffer("x", torch.zeros(32 * pitch, dtype=torch.int16), "in")
    y = bench.buffer("y", torch.zeros(128, dtype=torch.int32), "out")
    bench.call("ldmatrix", x, y, pitch, 0)
    load = counted(bench, "ldmatrix", "memory.cu", "cuda::ldmatrix(out")
    assert numbers(load) == (1, 32, 512, 4 * conflicts, 4)


@pytest.mark.parametrize(("name", "conflicts"), [("gemm_bf16", 1), ("gemm_no_padding", 4)])
def test_padding_frees_a_matmul_of_bank_conflicts(bench: Bench, name: str, conflicts: int) -> None:
    a = bench.buffer("a", torch.randn(64, 128).bfloat16(), "in")
    b = bench.buffer("b", torch.randn(32, 128).bfloat16(), "in")
    c = bench.buffer("c", torch.zeros(64, 32), "out")
    bench.call(name, a, b, c, 64, 32, 128, 128)
    for operand, count in (("cuda::ldmatrix(fa", 4 * 4 * 2), ("cuda::ldmatrix(fb", 4 * 4 * 2 * 2)):
        load = counted(bench, "ldmatrix", "gemm_tile.cu", operand)  # warps, steps, k (, n)
        assert numbers(load) == (count, 32 * count, 512 * count, 4 * count * conflicts, 4 * count)
    # Each row of a and b crosses from global memory once: 64 bytes, two sectors, per step.
    copies = [e for e in bench.statistics() if e["kind"] == "global load"]
    assert sum(e["transfers"] for e in copies) == (64 + 32) * 4 * 2
    assert sum(e["ideal"] for e in copies) == (64 + 32) * 4 * 2


def test_lanes_that_leave_a_loop_early(bench: Bench) -> None:
    x = bench.buffer("x", torch.randn(144))
    bench.call("scale", x, 144, 2.0, 1)
    # 128 threads; the second time around, 16 lanes of the first warp are left.
    text = "x[i] *= factor"
    expected = (5, 144, 576, 18, 18)
    assert numbers(counted(bench, "global load", "basics.cu", text)) == expected
    assert numbers(counted(bench, "global store", "basics.cu", text)) == expected


def test_atomics(bench: Bench) -> None:
    x = bench.buffer("x", torch.zeros(64, dtype=torch.int32), "in")
    bins = bench.buffer("bins", torch.zeros(40, dtype=torch.int32))
    bench.call("histogram", x, bins, 64, 40, 1)
    shared = counted(bench, "shared atomic", "blocks.cu", "atomicAdd(&own[x[i]], 1)")
    assert numbers(shared) == (2, 64, 256, 2, 2)
    bins_ = counted(bench, "global atomic", "blocks.cu", "atomicAdd(&bins[i], own[i])")
    assert numbers(bins_) == (1, 1, 4, 1, 1)


def test_statistics_add_up_and_can_be_cleared(bench: Bench) -> None:
    x = bench.buffer("x", torch.randn(128))
    for launches in (1, 2):
        bench.call("scale", x, 128, 2.0, 1)
        load = counted(bench, "global load", "basics.cu", "x[i] *= factor")
        assert load["transfers"] == 16 * launches
    bench.module.clear_statistics()
    assert bench.statistics() == []
    off = Bench("checked")
    off.call("scale", off.buffer("x", x), 128, 2.0, 1)
    assert off.statistics() == []
