"""The code that nvcc makes of csrc/cuda: registers, spills, shared memory, resident warps.

The tests of the gates and tools/kernel_table.py use it; no GPU is needed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
# The sources of csrc/cuda that have kernels. The matmuls take nvcc most of the time.
SOURCES = (
    "loss/class_list",
    "loss/gradients",
    "loss/products",
    "loss/row_stages",
    "loss/score",
    "loss/total",
    "negatives/score",
    "negatives/stages",
    "per_row/gradients",
    "per_row/score",
    "sample/distinct",
    "sample/filtered_rows",
    "sample/race",
    "sample/rows",
    "sample/with_replacement",
    "update/history",
    "update/row_plan",
    "update/row_update",
)
ARCHITECTURES = (75, 80, 90, 120)


class Kernel(NamedTuple):
    """A kernel as ptxas reports it for one architecture."""

    architecture: int
    symbol: str
    name: str  # "score_kernel<MmaTile<bfloat16, along_k, along_k>, 16>"
    registers: int
    stack: int
    spills: int  # bytes, stores and loads
    shared: int  # bytes of static shared memory
    empty: bool  # the architecture never runs it: tile.h

    @property
    def tile(self) -> str:
        """The tile that decides about dynamic shared memory, "MmaTile<bfloat16", or "-"."""
        match = re.search(r"\w+Tile<\w+", self.name)
        return match[0] if match else "-"


def find_nvcc() -> str | None:
    """The path of nvcc, from CUDA_HOME, PATH or its usual place; None where there is none."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    path = shutil.which("nvcc") or f"{home}/bin/nvcc"
    return path if Path(path).is_file() else None


def run_nvcc(arguments: list[str], source: Path) -> str:
    """Compiles with warnings as errors; what nvcc and ptxas print. RuntimeError if it fails."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise FileNotFoundError("no nvcc in PATH, CUDA_HOME or /usr/local/cuda")
    command = [nvcc, "-std=c++20", "-Wno-deprecated-gpu-targets", "-Werror=all-warnings"]
    result = subprocess.run(
        [*command, f"-I{ROOT}", *arguments, str(source)],
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    if result.returncode != 0:
        raise RuntimeError(result.stderr)
    return result.stderr


def demangle(symbols: list[str]) -> list[str]:
    """Readable names, without namespaces, parameters and what is the same in all of them."""
    text = subprocess.run(
        ["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True
    ).stdout
    short = re.sub(
        r"ssc::(cuda::)?|\(anonymous namespace\)::|__nv_|^void |\(int\)", "", text, flags=re.M
    )
    enumerators = {
        "Order": ("along_k", "along_extent"),
        "Rows": ("all", "chosen", "counted"),
    }  # operand.h
    for name, values in enumerators.items():
        for number, value in enumerate(values):
            short = short.replace(f"({name}){number}", value)
    short = short.replace("__half", "float16").replace("> >", ">>")
    return [line[: line.index("(")] for line in short.splitlines()]


def compile_source(source: str, architecture: int, cubin: Path) -> list[Kernel]:
    """The kernels of csrc/cuda/<source>.cu, left in `cubin` too."""
    arguments = [f"-arch=sm_{architecture}", "-cubin", "-Xptxas", "-v", "-o", str(cubin)]
    report = run_nvcc(arguments, ROOT / f"csrc/cuda/{source}.cu")
    found = re.findall(
        r"entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)",
        report,
        re.DOTALL,
    )
    names = demangle([symbol for symbol, *_ in found])
    kernels = []
    for name, (symbol, stack, stores, loads, registers, rest) in zip(names, found, strict=True):
        shared = re.search(r"(\d+) bytes smem", rest)
        kernels.append(
            Kernel(
                architecture,
                symbol,
                name,
                int(registers),
                int(stack),
                int(stores) + int(loads),
                int(shared[1]) if shared else 0,
                empty=int(registers) < 8,
            )
        )
    return kernels


def cuda_include() -> Path | None:
    """The folder of cuda_occupancy.h: requirements-dev.txt has it, and so has the toolkit."""
    nvcc = find_nvcc()
    folders = [
        Path(sysconfig.get_path("platlib")) / "nvidia/cu13/include",
        *([Path(nvcc).resolve().parent.parent / "include"] if nvcc else []),
        Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include",
    ]
    return next((folder for folder in folders if (folder / "cuda_occupancy.h").is_file()), None)


def build_occupancy(folder: Path) -> Path:
    """Compiles tools/occupancy.cpp into the folder."""
    include = cuda_include()
    if include is None:
        raise FileNotFoundError("no cuda_occupancy.h: see requirements-dev.txt")
    program = folder / "occupancy"
    subprocess.run(
        ["g++", "-std=c++20", "-O1", "-DSSC_SIMT", f"-I{ROOT}", "-isystem", str(include),
         str(ROOT / "tools/occupancy.cpp"), "-o", str(program)],
        check=True, timeout=300,
    )  # fmt: skip
    return program


def resident_warps(program: Path, kernels: list[Kernel]) -> list[int]:
    """Warps of each kernel that a multiprocessor holds at a time."""
    lines = [f"{k.architecture} {k.registers} {k.shared} {k.tile}\n" for k in kernels]
    result = subprocess.run(
        [str(program)], input="".join(lines), capture_output=True, text=True, check=True
    )
    return [int(line) for line in result.stdout.split()]
