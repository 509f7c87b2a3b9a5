"""Which kernels of nvcc each test runs: lines of JSON in the folder that SSC_PTX_LAUNCHES names.

tests/ptx/launches.cpp collects the names; tools/ptx_check.py reads the lines.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .simt_bench import module_path, use_executor


def _library(variant: str) -> ctypes.CDLL:
    with use_executor("ptx"):
        library = ctypes.CDLL(str(module_path(variant)))
    library.ssc_ptx_launched.restype = ctypes.c_char_p
    return library


def _launched() -> set[str]:
    """Names of the kernels that ran since the last call, in the bench or in an operator."""
    return {
        name
        for variant in ("plain", "ops")
        for name in _library(variant).ssc_ptx_launched().decode().split()
    }


@contextmanager
def recorded(test: str) -> Iterator[None]:
    """Writes a line about the test that runs inside, if anyone wants to know."""
    folder = os.environ.get("SSC_PTX_LAUNCHES")
    if not folder:
        yield
        return
    _launched()
    start = time.perf_counter()
    yield
    line = {
        "test": test,
        "seconds": round(time.perf_counter() - start, 3),
        "kernels": sorted(_launched()),
    }
    with Path(folder, f"{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
