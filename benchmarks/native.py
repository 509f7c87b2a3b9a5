"""Compiles the benchmarks' own C++ files on first use, for ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
BUILD_DIR = BENCHMARKS.parent / "build" / "benchmarks"


def compiler() -> str | None:
    candidates = (os.environ.get("CXX"), "g++", "c++", "clang++")
    return next((name for name in candidates if name and shutil.which(name)), None)


def load(stem: str, without: str) -> ctypes.CDLL | None:
    """benchmarks/STEM.cpp as a library, or None after one line on stderr that gives the reason and
    says what is left out (`without`)."""
    source = BENCHMARKS / f"{stem}.cpp"
    name = compiler()
    if name is None:
        print(f"{stem}: no C++ compiler found, so {without} is left out", file=sys.stderr)
        return None
    command = [name, "-std=c++20", "-O3", "-shared", "-fPIC", "-pthread"]
    parts = [source, *sorted(BENCHMARKS.glob(f"{stem}_*.h"))]
    text = " ".join(command).encode() + b"".join(part.read_bytes() for part in parts)
    tag = hashlib.sha256(text).hexdigest()[:12]
    library = BUILD_DIR / f"libssc_{stem}_{tag}.so"
    if not library.exists():
        BUILD_DIR.mkdir(parents=True, exist_ok=True)
        # Written under another name first: two runs may build at the same time.
        partial = library.with_suffix(f".{os.getpid()}.tmp")
        built = subprocess.run([*command, str(source), "-o", str(partial)], capture_output=True)
        if built.returncode != 0:
            lines = built.stderr.decode(errors="replace").strip().splitlines()
            reason = lines[0] if lines else f"exit status {built.returncode}"
            print(f"{stem}: {name} failed ({reason}); {without} is left out", file=sys.stderr)
            return None
        partial.replace(library)
    return ctypes.CDLL(str(library))
