"""nvcc compiles every kernel for real, without spills, stack frames or a register too many, with
main loops as short and accesses as wide as they are meant to be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import kernel_table
import nvcc
import pytest


class Budget(NamedTuple):
    """The limits of every kernel of a source, over all architectures."""

    registers: int  # of a thread, at most
    warps: int  # resident on a multiprocessor, at least


# The matmuls keep a tile in registers: 8 warps hide the waits of a pipeline of three stages, and
# the 16-bit products have 16. 7.5 holds 32 warps, 12.0 holds 48.
BUDGETS = {
    "loss/class_list": Budget(48, 32),
    "sample/filtered_rows": Budget(64, 32),
    "sample/rows": Budget(48, 32),
    "per_row/gradients": Budget(64, 32),
    "per_row/score": Budget(72, 24),
    "loss/total": Budget(64, 32),
    "sample/with_replacement": Budget(48, 32),
    "sample/distinct": Budget(64, 32),  # one block of 1024 threads
    "sample/race": Budget(64, 32),
    "loss/row_stages": Budget(64, 32),
    "loss/gradients": Budget(64, 32),
    "negatives/stages": Budget(64, 32),
    "loss/score": Budget(255, 8),
    "negatives/score": Budget(255, 8),
    "loss/products": Budget(168, 8),
    "update/history": Budget(64, 32),
    "update/row_plan": Budget(64, 32),
    "update/row_update": Budget(64, 32),
}
MATMULS = ("loss/score", "negatives/score", "loss/products")
DOUBLE_ROWS = Budget(128, 16)  # of update/row_update
HALF_PRODUCTS = {"MmaTile": Budget(128, 16), "FmaTile": Budget(240, 8)}  # the latter on 7.5


# Instructions in the main loop for each that multiplies, at most; 16-bit types, tf32, plain float.
LOOPS = {
    ("loss/score", "MmaTile<bfloat16"): 3.0,
    ("loss/score", "MmaTile<float"): 5.6,
    ("loss/score", "FmaTile<float"): 1.2,
    ("negatives/score", "MmaTile<bfloat16"): 3.0,
    ("negatives/score", "MmaTile<float"): 5.6,
    ("negatives/score", "FmaTile<float"): 1.2,
    ("loss/products", "MmaTile<bfloat16"): 3.9,
    ("loss/products", "MmaTile<float"): 5.2,
    ("loss/products", "FmaTile<float"): 1.2,
}


# Vectors that must be one access in the machine code, and at least how often they stand there: of 8
# and 16 bytes (vector_access.h), which would move two to eight times the sectors part by part.
# By source and pattern of the kernel's name.
WIDE = [
    ("loss/score", r"MmaTile", {"STG?.E.64": 32}),
    ("negatives/score", r"MmaTile", {"STG?.E.64": 32}),
    ("loss/products", r"WeightProduct<MmaTile", {"STG?.E.64": 32, "LDG.E.64": 32}),
    (
        "loss/products",
        r"WeightProduct<FmaTile<(float|bfloat16|float16)",
        {"STG?.E.128": 16, "LDG.E.128": 16},
    ),
    ("loss/products", r"WeightProduct<FmaTile<double", {"STG?.E.128": 8, "LDG.E.128": 8}),
    # Partial sums; then dH, of which the targets' rows of W are read.
    ("loss/products", r"InputProduct<MmaTile<b?float16", {"STG?.E.64": 32 + 16, "LDG.E.64": 16}),
    ("loss/products", r"InputProduct<MmaTile<float,", {"STG?.E.64": 32 + 32, "LDG.E.64": 32}),
    ("loss/products", r"InputProduct<FmaTile<float,", {"STG?.E.128": 16 + 16, "LDG.E.128": 16}),
    ("loss/products", r"InputProduct<FmaTile<double", {"STG?.E.128": 8 + 8, "LDG.E.128": 8}),
    ("loss/row_stages", r"target_logits_kernel<float>", {"LDG.E.128": 2}),
    ("loss/gradients", r"^probabilities_kernel<float>", {"STG?.E.128": 1, "LDG.E.128": 1}),
    ("loss/gradients", r"^input_grad_kernel<float>", {"STG?.E.128": 1, "LDG.E.128": 2}),
    ("loss/gradients", r"^class_grads_kernel<bfloat16", {"STG?.E.64": 1, "LDG.E.64": 1}),
    ("negatives/stages", r"find_hits_kernel", {"STG?.E.128": 1}),
    (
        "per_row/gradients",
        r"row_class_grads_kernel<bfloat16, true",
        {"STG?.E.128": 1, "LDG.E.128": 1, "LDG.E.64": 4},
    ),
    ("per_row/score", r"score_rows_kernel<\w+, true", {"LDG.E.128": 5}),
    ("per_row/gradients", r"row_input_grad_kernel<\w+, true", {"STG?.E.128": 1, "LDG.E.128": 4}),
    ("sample/with_replacement", r"draw_kernel", {"STG?.E.128": 1}),
    ("sample/distinct", r"insert_kernel", {"STG?.E.128": 1}),
    ("sample/distinct", r"compact_kernel", {"LDG.E.128": 1}),
    ("sample/race", r"arrival_times_kernel", {"STG?.E.128": 2}),
    (
        "update/row_update",
        r"row_update_kernel<true, \w+, float, float",
        {"STG?.E.128": 3, "LDG.E.128": 4},
    ),
    (
        "update/row_update",
        r"row_update_kernel<true, \w+, bfloat16, bfloat16",
        {"STG?.E.64": 3, "LDG.E.64": 4},
    ),
    (
        "update/row_update",
        r"row_update_kernel<true, \w+, double",
        {"STG?.E.128": 6, "LDG.E.128": 8},
    ),
]


def budget_of(source: str, kernel: nvcc.Kernel) -> Budget:
    kind, _, dtype = kernel.tile.partition("<")
    if source == "loss/products" and dtype in ("bfloat16", "float16"):
        return HALF_PRODUCTS[kind]
    if source == "update/row_update" and "double" in kernel.name:
        return DOUBLE_ROWS
    return BUDGETS[source]


def tiles_of(architecture: int) -> set[str]:
    """16-bit types take fused multiply-adds before 8.0 and tensor cores from then on (tile.h)."""
    plain = {"FmaTile<double", "FmaTile<float"}
    if architecture < 80:
        return plain | {"FmaTile<bfloat16", "FmaTile<float16"}
    return plain | {"MmaTile<bfloat16", "MmaTile<float16", "MmaTile<float"}


def test_every_source_has_a_budget() -> None:
    marks = ("__global__", "csrc/cuda/loss/score.h")  # a kernel of its own, or an epilogue of one
    with_kernels = {
        path.relative_to(nvcc.ROOT / "csrc/cuda").with_suffix("").as_posix()
        for path in (nvcc.ROOT / "csrc/cuda").rglob("*.cu")
        if any(mark in path.read_text() for mark in marks)
    }
    assert with_kernels == set(BUDGETS) == set(nvcc.SOURCES)


@pytest.fixture(scope="module")
def occupancy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that knows how many warps a multiprocessor holds."""
    if nvcc.cuda_include() is None:
        pytest.skip("no cuda_occupancy.h here")
    return nvcc.build_occupancy(tmp_path_factory.mktemp("occupancy"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "registers", "static", "tile", "warps"),
    [
        (80, 32, 0, "-", 64),
        (80, 255, 8448, "MmaTile<bfloat16", 8),  # 65536 / (256 * 255)
        (80, 128, 0, "MmaTile<float16", 16),
        (120, 64, 0, "-", 32),
        (120, 128, 0, "MmaTile<float16", 16),  # 2 * (48 + 1) of 100 KiB
        (120, 128, 8448, "MmaTile<float16", 8),  # 2 * (48 + 8.25 + 1) are too many
        (120, 128, 0, "FmaTile<double", 16),
        (75, 32, 0, "-", 32),
        (75, 128, 0, "FmaTile<bfloat16", 8),  # 48 of 64 KiB
    ],
)
def test_resident_warps_by_hand(
    occupancy: Path, architecture: int, registers: int, static: int, tile: str, warps: int
) -> None:
    kernel = nvcc.Kernel(architecture, "", f"{tile},", registers, 0, 0, static, False)
    assert nvcc.resident_warps(occupancy, [kernel]) == [warps]


def long_loops(source: str, kernels: list[nvcc.Kernel], cubin: Path) -> list[str]:
    """A line for each main loop with more instructions than LOOPS says."""
    nvdisasm = kernel_table.find_nvdisasm()
    if nvdisasm is None:
        return []
    sass = kernel_table.functions(nvdisasm, cubin)
    offences = []
    for kernel in filter(kernel_table.is_shown, kernels):
        most = LOOPS.get((source, kernel.tile))
        ratio = kernel_table.instructions_per_multiplication(sass[kernel.symbol]) if most else 0
        if most and ratio > most:
            offences.append(
                f"{kernel.name}, sm_{kernel.architecture}: {ratio:.2f} instructions per"
                f" multiplication in the main loop, {most} allowed"
            )
    return offences


def narrow_accesses(source: str, kernels: list[nvcc.Kernel], cubin: Path) -> list[str]:
    """A line for each kernel with fewer wide accesses than WIDE says."""
    nvdisasm = kernel_table.find_nvdisasm()
    expected = [(pattern, least) for name, pattern, least in WIDE if name == source]
    if nvdisasm is None or not expected:
        return []
    sass = kernel_table.functions(nvdisasm, cubin)
    offences = []
    for kernel in kernels:
        for pattern, least in expected:
            if re.search(pattern, kernel.name) is None:
                continue
            found = {name: len(re.findall(rf"\b{name}\b", sass[kernel.symbol])) for name in least}
            if any(found[name] < count for name, count in least.items()):
                offences.append(
                    f"{kernel.name}, sm_{kernel.architecture}: {found}, at least {least} expected"
                )
    return offences


def test_every_pattern_of_wide_accesses_names_kernels() -> None:
    """A pattern that no kernel has would check nothing."""
    for source, pattern, _ in WIDE:
        word = re.search(r"\w+", pattern)
        assert word is not None
        files = [nvcc.ROOT / f"csrc/cuda/{source}.cu", *(nvcc.ROOT / "csrc/cuda/tile").glob("*.h")]
        assert any(word[0] in file.read_text() for file in files), (source, pattern)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", nvcc.ARCHITECTURES)
@pytest.mark.parametrize("source", BUDGETS)
def test_registers_spills_warps_and_main_loops(
    occupancy: Path, source: str, architecture: int, tmp_path: Path
) -> None:
    if nvcc.find_nvcc() is None:
        pytest.skip("no nvcc here")
    cubin = tmp_path / "kernels.cubin"
    compiled = nvcc.compile_source(source, architecture, cubin)
    kernels = [kernel for kernel in compiled if not kernel.empty]
    assert kernels
    if source in MATMULS:
        assert {kernel.tile for kernel in kernels} == tiles_of(architecture)
    offences = long_loops(source, kernels, cubin) if source in MATMULS else []
    offences += narrow_accesses(source, kernels, cubin)
    for kernel, warps in zip(kernels, nvcc.resident_warps(occupancy, kernels), strict=True):
        budget = budget_of(source, kernel)
        excess = kernel.registers > budget.registers or warps < budget.warps
        if kernel.stack or kernel.spills or excess:
            offences.append(
                f"{kernel.name}, sm_{architecture}: stack {kernel.stack}, spills {kernel.spills},"
                f" {kernel.registers} registers of {budget.registers}, {warps} resident warps of"
                f" at least {budget.warps}"
            )
    assert not offences, "\n".join(offences)
    looked_into = source in MATMULS or any(name == source for name, *_ in WIDE)
    if looked_into and kernel_table.find_nvdisasm() is None:
        pytest.skip("no nvdisasm: all but the main loops and wide accesses was checked")
