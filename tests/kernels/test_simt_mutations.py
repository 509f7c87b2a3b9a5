"""csrc/simt catches wrong kernels: each test breaks a kernel that is right without that.

A mutation counts as caught when the finding has the right kind and, where it says so, names the
right line, thread or buffer; the unchanged kernels run clean in test_simt.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.simt_bench import ROOT, SCHEDULES, Bench, SimtError, require


@pytest.fixture(params=SCHEDULES)
def checked(request: pytest.FixtureRequest) -> Bench:
    require("checked")
    return Bench("checked", schedule=request.param, seed=3)


@pytest.fixture
def plain() -> Bench:
    require("plain")
    return Bench("plain")


def call_fails(bench: Bench, name: str, *arguments: Any) -> SimtError:
    with pytest.raises(SimtError) as caught:
        bench.call(name, *arguments)
    return caught.value


def line_of(source: str, text: str) -> str:
    """tests/simt/<source>:<line of the only occurrence of text>"""
    lines = (ROOT / "tests/simt" / source).read_text(encoding="utf-8").splitlines()
    (line,) = [number for number, line in enumerate(lines, 1) if text in line]
    return f"tests/simt/{source}:{line} "


def ints(bench: Bench, name: str, n: int, mode: Any = "inout") -> torch.Tensor:
    return bench.buffer(name, torch.arange(n, dtype=torch.int32), mode)


def floats(bench: Bench, name: str, n: int, mode: Any = "inout") -> torch.Tensor:
    return bench.buffer(name, torch.arange(n, dtype=torch.float32), mode)


# --- barriers taken out ---------------------------------------------------------------------------
@pytest.mark.parametrize("mutation", [1, 2])
def test_missing_barrier_in_a_tree_reduction(checked: Bench, mutation: int) -> None:
    x, sums = floats(checked, "x", 256, "in"), floats(checked, "sums", 1, "out")
    error = call_fails(checked, "tree_sum", x, sums, 1, mutation)
    assert "race" in error.kinds
    assert line_of("barriers.cu", "partial[t] += partial[t + half]") in str(error)
    assert "tree_sum_kernel(float const*, float*, int)::partial" in str(error)


@pytest.mark.parametrize("mutation", ["no_barrier_after_wait", "no_barrier_before_reuse"])
def test_missing_barrier_in_a_pipeline(checked: Bench, mutation: str) -> None:
    assert "race" in matmul_fails(checked, mutation).kinds


def matmul_fails(bench: Bench, mutation: str) -> SimtError:
    a = bench.buffer("a", torch.randn(64, 128).bfloat16(), "in")
    b = bench.buffer("b", torch.randn(32, 128).bfloat16(), "in")
    c = bench.buffer("c", torch.zeros(64, 32), "out")
    return call_fails(bench, f"gemm_{mutation}", a, b, c, 64, 32, 128, 128)


def test_missing_wait_for_asynchronous_copies(checked: Bench) -> None:
    error = matmul_fails(checked, "no_wait")
    assert "has not yet been waited for" in str(error)
    assert line_of("gemm_tile.cu", "cuda::ldmatrix(fa") in str(error)


def test_a_missing_wait_gives_wrong_numbers_even_without_checks(plain: Bench) -> None:
    a = torch.ones(64, 128).bfloat16()
    c = torch.zeros(64, 32)
    plain.call("gemm_no_wait", a, a, c, 64, 32, 128, 128)
    assert c.isnan().any()


@pytest.mark.parametrize("mutation", [1, 6])  # none at all; halves of the warp apart
def test_missing_syncwarp(checked: Bench, mutation: int) -> None:
    x, y = ints(checked, "x", 32, "in"), ints(checked, "y", 32, "out")
    error = call_fails(checked, "rotate", x, y, mutation)
    assert "race" in error.kinds
    assert "rotate_kernel(int const*, int*, int)::tile" in str(error)


# --- barriers and collectives that never complete -------------------------------------------------
@pytest.mark.parametrize(
    ("mutation", "kind", "parts"),
    [
        (1, "barrier", ["threads 0 to 39: ", "threads 40 to 95: ", "{ __syncthreads(); } else"]),
        (2, "barrier", ["threads 0 to 31", "threads 32 to 95"]),
        (3, "barrier", ["threads 0 to 63", "threads 64 to 95"]),
        (4, "exited", ["16 threads", "threads 80 to 95: exited"]),
        (5, "deadlock", ["thread 3: at a barrier", "threads 4 to 34: at __syncwarp"]),
    ],
    ids=["same line", "different lines", "different barriers", "exited", "against __syncwarp"],
)
@pytest.mark.parametrize("variant", ["plain", "checked"])
def test_divergent_barrier(variant: str, mutation: int, kind: str, parts: list[str]) -> None:
    require(variant)
    for schedule in SCHEDULES:
        bench = Bench(variant, schedule=schedule)
        y = ints(bench, "y", 96, "out")
        error = call_fails(bench, "divergent", y, mutation)
        assert error.kinds == {kind}
        for part in parts:
            if "__syncthreads" in part:
                part = line_of("barriers.cu", part)
            assert part in str(error), str(error)
        bench.call("divergent", y, 0)  # the executor is usable afterwards


def test_two_instances_of_a_template_are_two_barriers(plain: Bench) -> None:
    error = call_fails(plain, "two_instances", ints(plain, "y", 96))
    assert error.kinds == {"barrier"}
    assert line_of("barriers.cu", "helper<1>(y);") in str(error)
    assert line_of("barriers.cu", "helper<2>(y);") in str(error)


def test_exited_threads_may_be_allowed(plain: Bench) -> None:
    bench = Bench("plain", strict_exit=False)
    y = torch.full((96,), -1, dtype=torch.int32)
    bench.call("divergent", y, 4)
    assert torch.equal(y[:80], torch.arange(80, dtype=torch.int32))
    assert (y[80:] == -1).all()
    y[:] = -1
    bench.call("wrong_masks", y, 3)
    expected = torch.arange(32, dtype=torch.int32) ^ 1
    assert torch.equal(y[8:32], expected[8:])


@pytest.mark.parametrize(
    ("mutation", "kind", "part"),
    [
        (2, "collective", "is outside of the mask 0xffff"),
        (3, "exited", "lanes 0x80 have exited"),
        (4, "collective", "shuffles from lane 8, which is outside of the mask 0xff"),
        (5, "exited", "at __any_sync, mask 0xffffffff"),
    ],
    ids=["outside its own mask", "exited lane", "source outside the mask", "different masks"],
)
@pytest.mark.parametrize("variant", ["plain", "checked"])
def test_wrong_mask(variant: str, mutation: int, kind: str, part: str) -> None:
    require(variant)
    bench = Bench(variant)
    error = call_fails(bench, "wrong_masks", ints(bench, "y", 32), mutation)
    assert error.kinds == {kind}
    assert part in str(error)
    assert "tests/simt/warps.cu" in str(error)


# --- out of bounds --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("read", "write", "part"),
    [
        (1, 0, "read of 4 bytes at no declared buffer: 0 bytes behind x, which has 256"),
        (0, 1, "write of 4 bytes at no declared buffer: 0 bytes behind y, which has 256"),
        (-1, 0, "read of 4 bytes at no declared buffer: 4 bytes in front of x, which has 256"),
    ],
    ids=["read behind", "write behind", "read in front"],
)
def test_global_index_off_by_one(checked: Bench, read: int, write: int, part: str) -> None:
    memory = torch.zeros(1024)  # x and y lie in it with room around
    x = checked.buffer("x", memory[128:192], "in")
    y = checked.buffer("y", memory[512:576], "out")
    checked.call("global", x, y, 64, 0, 0)
    error = call_fails(checked, "global", x, y, 64, read, write)
    assert error.kinds == {"bounds"}
    assert part in str(error)
    assert line_of("memory.cu", "y[t + write]") in str(error)


@pytest.mark.parametrize("offset", [1, -1, 1000])
def test_dynamic_shared_index_off_by_one(checked: Bench, offset: int) -> None:
    error = call_fails(checked, "dynamic", floats(checked, "y", 1), offset)
    assert error.kinds == {"bounds"}
    if offset > 0:
        assert "dynamic shared memory of 128" in str(error)


@pytest.mark.parametrize("offset", [1, -1])
def test_static_shared_index_off_by_one_although_neighbours_lie_there(
    checked: Bench, offset: int
) -> None:
    y = floats(checked, "y", 32)
    checked.call("static", y, 0)
    error = call_fails(checked, "static", y, offset)
    assert error.kinds == {"bounds"}
    assert "static_kernel(float*, int)::" in str(error)


@pytest.mark.parametrize("name", ["dynamic", "static"])
def test_shared_overrun_is_noticed_without_checks_too(plain: Bench, name: str) -> None:
    error = call_fails(plain, name, torch.zeros(32), 1)
    assert error.kinds == {"bounds"}
    assert "wrote behind" in str(error)


def test_write_to_a_read_only_buffer(checked: Bench) -> None:
    x, y = floats(checked, "x", 64, "in"), floats(checked, "y", 64, "in")
    error = call_fails(checked, "global", x, y, 64, 0, 0)
    assert error.kinds == {"bounds"}
    assert "y at byte" in str(error)
    assert "read-only" in str(error)


def test_null_pointer(checked: Bench) -> None:
    error = call_fails(checked, "global", None, floats(checked, "y", 64), 64, 0, 0)
    assert error.kinds == {"bounds"}


def test_memcpy_inside_a_kernel_runs_over_the_end(checked: Bench) -> None:
    x = checked.buffer("x", torch.zeros(32, dtype=torch.int8), "in")
    y = checked.buffer("y", torch.zeros(64, dtype=torch.int8), "out")
    error = call_fails(checked, "memcpy", x, y, 33)
    assert error.kinds == {"bounds"}
    assert "read of 33 bytes at byte 0 of x, which has 32" in str(error)


# --- uninitialised, misaligned --------------------------------------------------------------------
def test_uninitialised_shared_read(checked: Bench) -> None:
    y = floats(checked, "y", 32)
    checked.call("uninitialised_shared", y, 32)
    error = call_fails(checked, "uninitialised_shared", y, 33)
    assert error.kinds == {"uninitialised"}
    assert "::tile at byte 128, where nothing was written" in str(error)
    assert line_of("memory.cu", "sum += tile[i]") in str(error)


def test_shared_memory_is_poisoned(plain: Bench) -> None:
    y = torch.zeros(32)
    plain.call("uninitialised_shared", y, 33)
    assert y.isnan().all()


def test_uninitialised_global_read(checked: Bench) -> None:
    x, y = floats(checked, "x", 64, "out"), floats(checked, "y", 64, "out")
    error = call_fails(checked, "global", x, y, 64, 0, 0)
    assert error.kinds == {"uninitialised"}
    assert error.findings[0]["count"] == 64  # one finding for all threads


@pytest.mark.parametrize(("read", "write"), [(1, 0), (0, 1), (2, 0)])
def test_misaligned_vector_access(checked: Bench, read: int, write: int) -> None:
    x, y = floats(checked, "x", 80, "in"), floats(checked, "y", 80, "out")
    checked.call("vector", x, y, 16, 4, 4)
    error = call_fails(checked, "vector", x, y, 16, read, write)
    assert error.kinds == {"misaligned"}
    assert f"{'write' if write else 'read'} of 16 bytes" in str(error)
    assert "tests/simt/memory.cu" in str(error)


# --- between blocks -------------------------------------------------------------------------------
def test_two_blocks_write_the_same_place(checked: Bench) -> None:
    error = call_fails(checked, "colliding_blocks", ints(checked, "y", 32))
    assert error.kinds == {"race"}
    assert "of another block" in str(error)


def test_a_block_reads_what_another_one_writes(checked: Bench) -> None:
    y, z = ints(checked, "y", 4), ints(checked, "z", 4)
    checked.call("neighbour_blocks", y, z, 1)
    error = call_fails(checked, "neighbour_blocks", y, z, 4)
    assert error.kinds == {"race"}


@pytest.mark.parametrize("mutation", [1, 2], ids=["no fence", "no barrier before the counter"])
def test_last_block_pattern_without_its_parts(checked: Bench, mutation: int) -> None:
    x, partial = floats(checked, "x", 5 * 64, "in"), floats(checked, "partial", 5 * 64, "out")
    counter, total = ints(checked, "counter", 1), floats(checked, "total", 1)
    error = call_fails(checked, "last_block", x, partial, counter, total, 5, mutation)
    assert error.kinds == {"race"}
    assert line_of("blocks.cu", "sum += partial[i];  // as the last") in str(error)


# --- launches -------------------------------------------------------------------------------------
def test_trap_ends_the_launch(plain: Bench) -> None:
    plain.call("trap", torch.zeros(1, dtype=torch.int32))
    error = call_fails(plain, "trap", torch.ones(1, dtype=torch.int32))
    assert error.kinds == {"trap"}
    assert line_of("memory.cu", "__trap()") in str(error)


@pytest.mark.parametrize(
    ("n", "shared", "part"),
    [
        (1025, 4100, "1056 threads in a block"),
        (32, 48 * 1024 + 1, "see cudaFuncSetAttribute"),
        (32, 10**6, "0 + 1000000 bytes of static and dynamic shared memory, 232448 there"),
    ],
)
def test_launches_that_hardware_would_refuse(plain: Bench, n: int, shared: int, part: str) -> None:
    x = torch.zeros(n, dtype=torch.int32)
    error = call_fails(plain, "reverse", x, x, n, shared)
    assert error.kinds == {"configuration"}
    assert part in str(error)


def test_static_shared_memory_counts_towards_the_limit(plain: Bench) -> None:
    y = ints(plain, "y", 32)
    plain.call("static_and_dynamic", y, 47 * 1024)
    error = call_fails(plain, "static_and_dynamic", y, 47 * 1024 + 4)
    assert error.kinds == {"configuration"}
    assert "48132 bytes of dynamic shared memory, 48128 allowed beside 1024 of static" in str(error)


def test_checks_can_be_switched_off() -> None:
    require("checked")
    bench = Bench("checked", races=False)
    bench.call("colliding_blocks", ints(bench, "y", 32))
    bench = Bench("checked", initialised=False)
    bench.call("uninitialised_shared", floats(bench, "y", 32), 33)
    bench = Bench("checked", bounds=False)
    x = torch.zeros(65)
    bench.call("global", x, floats(bench, "y", 64), 64, 1, 0)


def test_the_bench_names_mistakes_in_calls(plain: Bench) -> None:
    with pytest.raises(KeyError, match="no launcher nonsense"):
        plain.call("nonsense")
    with pytest.raises(TypeError, match="scale takes 4 arguments, got 1"):
        plain.call("scale", 1)
    with pytest.raises(ValueError, match="ascending, descending or shuffled"):
        Bench("plain", schedule="random")
