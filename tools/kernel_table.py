"""Prints what the compiler made of the CUDA kernels, as a table: python tools/kernel_table.py

For each kernel, architecture by architecture: registers, spilled bytes, resident warps per
multiprocessor and, for the matmuls, the instructions in the main loop for each that multiplies
(mma, or a fused multiply-add), itself included.

Needs nvcc; no GPU. The main loops are read by nvdisasm (requirements-dev.txt has it), and left out
without it. Matmuls are shown for rows that are aligned to 16 bytes, and float16, which is compiled
to the same as bfloat16, not at all. `--source loss/score --architecture 80` restricts the table.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import nvcc

# SASS opcodes that do the multiplying.
MULTIPLY = ("HMMA", "FFMA", "DFMA")


def find_nvdisasm() -> str | None:
    """In PATH, beside nvcc, or in the PyPI package nvidia-cuda-nvdisasm."""
    compiler = nvcc.find_nvcc()
    folders = [
        *([Path(compiler).resolve().parent] if compiler else []),
        *(Path(folder) / "nvidia/cu13/bin" for folder in sys.path),
    ]
    beside = (str(folder / "nvdisasm") for folder in folders if (folder / "nvdisasm").is_file())
    return shutil.which("nvdisasm") or next(beside, None)


def main_loop(sass: str) -> Counter[str]:
    """Opcodes of the loop with most multiplications that has none of them in a loop inside."""
    lines = sass.splitlines()
    labels = {line[:-1]: i for i, line in enumerate(lines) if re.match(r"\.L_x_\d+:$", line)}
    loops: list[tuple[int, int, Counter[str]]] = []
    for end, line in enumerate(lines):
        branch = re.search(r"\bBRA(?:\.\w+)* .*`\((\.L_x_\d+)\)", line)
        begin = labels.get(branch[1], end) if branch else end
        if begin >= end:
            continue
        body = "\n".join(lines[begin : end + 1])
        opcodes = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+ )?(\w+)", body, re.MULTILINE)
        if any(opcode in MULTIPLY for opcode in opcodes):
            loops.append((begin, end, Counter(opcodes)))
    inner = [
        counts
        for begin, end, counts in loops
        if not any(begin <= b and e <= end and (b, e) != (begin, end) for b, e, _ in loops)
    ]
    return max(inner, key=multiplications, default=Counter())


def multiplications(counts: Counter[str]) -> int:
    return sum(counts[name] for name in MULTIPLY)


def functions(nvdisasm: str, cubin: Path) -> dict[str, str]:
    """The SASS of each kernel of a cubin, by its symbol."""
    text = subprocess.run(
        [nvdisasm, "-c", str(cubin)], capture_output=True, text=True, check=True, timeout=300
    ).stdout
    parts = re.split(r"^\.text\.(\S+):$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def instructions_per_multiplication(sass: str) -> float:
    """In the main loop of one function."""
    counts = main_loop(sass)
    return sum(counts.values()) / multiplications(counts)


def is_shown(kernel: nvcc.Kernel) -> bool:
    aligned = kernel.tile == "-" or kernel.name.endswith(", 16>")
    return aligned and not kernel.empty and "float16" not in kernel.name.replace("bfloat16", "")


def cells(source: str, architecture: int, occupancy: Path, folder: Path) -> dict[str, list[str]]:
    """The table's columns for each kernel of a source on one architecture."""
    cubin = folder / f"{source.replace('/', '_')}_{architecture}.cubin"
    kernels = list(filter(is_shown, nvcc.compile_source(source, architecture, cubin)))
    nvdisasm = find_nvdisasm()
    matmuls = any(kernel.tile != "-" for kernel in kernels)
    sass = functions(nvdisasm, cubin) if nvdisasm and matmuls else {}
    result = {}
    for kernel, warps in zip(kernels, nvcc.resident_warps(occupancy, kernels), strict=True):
        ratio = f"{instructions_per_multiplication(sass[kernel.symbol]):.1f}" if sass else ""
        result[kernel.name] = [str(kernel.registers), str(kernel.spills), str(warps), ratio]
    return result


def rows(sources: list[str], architectures: list[int], folder: Path) -> list[list[str]]:
    occupancy = nvcc.build_occupancy(folder)
    table = []
    for source in sources:
        by_architecture = [cells(source, a, occupancy, folder) for a in architectures]
        for name in sorted(set().union(*by_architecture)):
            columns = zip(*(found.get(name, ["–"] * 4) for found in by_architecture), strict=True)
            texts = [" · ".join(column) if any(column) else "" for column in columns]
            table.append([f"`{name}`", *texts])
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", choices=nvcc.SOURCES, action="append")
    parser.add_argument("--architecture", type=int, choices=nvcc.ARCHITECTURES, action="append")
    arguments = parser.parse_args()
    if nvcc.find_nvcc() is None:
        print("no nvcc here: nothing to look at")
        return 0
    sources = arguments.source or list(nvcc.SOURCES)
    architectures = arguments.architecture or list(nvcc.ARCHITECTURES)
    if find_nvdisasm() is None:
        print("no nvdisasm: nothing about the main loops", file=sys.stderr)
    on = " · ".join(f"{a / 10:.1f}" for a in architectures)
    header = [f"kernel, on {on}", "registers", "spills", "resident warps", "per multiplication"]
    with tempfile.TemporaryDirectory() as folder:
        table = rows(sources, architectures, Path(folder))
    for line in (header, ["---"] * len(header), *table):
        print(f"| {' | '.join(line)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
