"""nvcc compiles every kernel for real, without spills, stack frames or a register too many."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = [75, 80, 90, 120]
# The matmuls take nvcc half a minute each; 7.5 has no tensor-core path of ours to look at.
SLOW_ARCHITECTURES = [80, 120]
# Registers per thread at most, over all architectures. 255 in blocks of 256 threads leave 8 warps
# resident on a multiprocessor.
BUDGETS = {
    "class_list": 48,
    "grads": 64,
    "products": 168,
    "reduction": 64,
    "rows": 64,
    "sample": 48,
    "score": 255,
}


def nvcc_path() -> str | None:
    path = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    return path if Path(path).is_file() else None


def test_every_source_has_a_budget() -> None:
    with_kernels = {
        path.stem for path in (ROOT / "csrc/cuda").glob("*.cu") if "__global__" in path.read_text()
    }
    assert with_kernels == set(BUDGETS)


def compilations() -> list[tuple[str, int]]:
    slow = {"score", "products"}
    return [
        (source, architecture)
        for source in BUDGETS
        for architecture in (SLOW_ARCHITECTURES if source in slow else ARCHITECTURES)
    ]


@pytest.mark.parametrize(("source", "architecture"), compilations())
def test_registers_and_spills(source: str, architecture: int, tmp_path: Path) -> None:
    nvcc = nvcc_path()
    if nvcc is None:
        pytest.skip("no nvcc here")
    result = subprocess.run(
        [nvcc, "-std=c++20", f"-arch=sm_{architecture}", "-cubin", "-Xptxas", "-v",
         "-Wno-deprecated-gpu-targets", "-Werror=all-warnings", f"-I{ROOT}",
         str(ROOT / f"csrc/cuda/{source}.cu"), "-o", str(tmp_path / "kernels.cubin")],
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    # Per kernel: "Compiling entry function 'NAME' for 'sm_80'", its stack frame, its registers.
    kernels = re.findall(
        r"entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        result.stderr,
        re.DOTALL,
    )
    assert kernels
    offences = [
        f"{name}, sm_{architecture}: stack {stack}, spills {stores}/{loads}, {registers} registers"
        for name, stack, stores, loads, registers in kernels
        if (stack, stores, loads) != ("0", "0", "0") or int(registers) > BUDGETS[source]
    ]
    assert not offences, "\n".join(offences)
