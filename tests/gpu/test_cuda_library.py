"""_C_cuda.so without a GPU: what it links, exports and was compiled for, and that it registers.

`make cuda` builds it against the torch that is installed. A CPU torch can't load it as it is; with
the build's stub of libtorch_cuda.so on the loader's path it can, in a process of its own.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest

from helpers import ROOT
from sampled_softmax_cuda.ops import library

BUILD = ROOT / "build/cuda"
LIBRARY = BUILD / "out/_C_cuda.so"

pytestmark = [
    pytest.mark.slow,  # needs the library, which takes minutes to build
    pytest.mark.skipif(not LIBRARY.is_file(), reason="`make cuda` builds it, with nvcc"),
]

# Operators that only the CPU has: by their nature, because a GPU takes the parts that autograd
# composes, with no factor of the backward pass to look at, or because one would wait for them.
CPU_ONLY = {
    "advise_huge_pages",
    "build_alias_table",
    "negatives_loss_and_grads",
    "loss_and_wide_grads",
    "target_products",
    "add_target_grads",
    "unit_rows",
    "unit_rows_grad",
    "gradient_faults",
}

# Loads both libraries; prints, one per line, the operators of each device and the architectures.
REGISTRATIONS = """
import sys, torch
for library in sys.argv[1:]:
    torch.ops.load_library(library)
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("sampled_softmax::")]
for device in ("CPU", "CUDA"):
    print(*(name.partition("::")[2] for name in names if has_kernel(name, device)))
print(torch.ops.sampled_softmax.cuda_architectures())
"""


def output_of(*command: object, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True, text=True, timeout=300, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, f"{command[0]} gave {done.returncode}:\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def registered() -> tuple[set[str], set[str], str]:
    """Operators with a CPU kernel, those with a CUDA kernel, and what it was compiled for."""
    if not library.library_loaded():
        pytest.skip(library.native_reason())
    lines = output_of(
        *(sys.executable, "-c", REGISTRATIONS, library.LIBRARY, LIBRARY),
        LD_LIBRARY_PATH=str(BUILD / "stub"),
    ).splitlines()
    return set(lines[0].split()), set(lines[1].split()), lines[2]


def test_every_operator_is_registered(registered: tuple[set[str], set[str], str]) -> None:
    cpu, cuda, _ = registered
    assert cuda == cpu - CPU_ONLY
    assert cpu >= CPU_ONLY


def test_needed_libraries() -> None:
    """torch's two by name, so that symbols are found in them; no CUDA runtime and no Python."""
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", output_of("readelf", "-d", LIBRARY)))
    assert {"libtorch_cpu.so", "libtorch_cuda.so"} <= needed
    system = ("libc.", "libstdc++.", "libgcc_s.", "libm.", "libdl.", "librt.", "libpthread.", "ld-")
    assert not [n for n in needed if not n.startswith((*system, "libtorch_cpu.", "libtorch_cuda."))]


def test_symbols_are_those_of_the_stable_abi() -> None:
    undefined = [line.split() for line in output_of("nm", "-D", "-u", LIBRARY).splitlines()]
    unversioned = {name for kind, name in undefined if kind == "U" and "@" not in name}
    assert unversioned
    assert not [n for n in unversioned if not re.match(r"(aoti_)?torch_[A-Za-z0-9_]+$", n)]
    exported = output_of("nm", "-D", "-C", "--defined-only", LIBRARY)
    assert not re.search(r"\bssc::|\bcub::|\bcuda[A-Z]|__cudaRegister", exported)


def fatbin_images() -> Iterator[tuple[int, int, bool]]:
    """(fat binary, architecture such as 90, whether PTX) of each image in the library.

    A fat binary is a header (magic, version, header size, size) and images, each with a header of
    its own: kind (1 PTX, 2 ELF), version, header size, size, ..., at byte 28 the architecture.
    """
    sections = output_of("readelf", "-S", "-W", LIBRARY)
    section = re.search(r"\.nv_fatbin\s+PROGBITS\s+\S+\s+(\S+)\s+(\S+)", sections)
    assert section is not None
    offset, size = (int(number, 16) for number in section.groups())
    data = LIBRARY.read_bytes()[offset : offset + size]
    start, binary = data.find(b"\x50\xed\x55\xba"), 0
    while start >= 0:
        _, _, header, length = struct.unpack_from("<IHHQ", data, start)
        at, end = start + header, start + header + length
        while at < end:
            kind, _, header, length = struct.unpack_from("<HHIQ", data, at)
            yield binary, struct.unpack_from("<I", data, at + 28)[0], kind == 1
            at += header + length
        start, binary = data.find(b"\x50\xed\x55\xba", end), binary + 1


def test_compiled_architectures(registered: tuple[set[str], set[str], str]) -> None:
    """Every source was compiled for what `cuda_architectures` promises, and nothing else."""
    promised = set()
    for name in registered[2].split():
        number = int(re.sub(r"\.|\+PTX", "", name))
        promised |= {(number, False), (number, True)} if "+PTX" in name else {(number, False)}
    binaries: dict[int, set[tuple[int, bool]]] = {}
    for binary, architecture, ptx in fatbin_images():
        binaries.setdefault(binary, set()).add((architecture, ptx))
    with_kernels = [p for p in (ROOT / "csrc/cuda").rglob("*.cu") if "__global__" in p.read_text()]
    assert len(binaries) >= len(with_kernels)
    assert {frozenset(images) for images in binaries.values()} == {frozenset(promised)}
