"""Load the compiled operator library, and decide which backend serves a device.

The package works without it: `sampled_softmax_cuda.reference` then computes everything in plain
PyTorch. Why the library is missing is kept in `native_reason()` and shown by `build_info()`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("_C.abi3.so")

# Device types that have kernels in the loaded library; all others are served by the reference.
_NATIVE_DEVICES: frozenset[str] = frozenset({"cpu"})

_BACKENDS = ("auto", "native", "reference")


def _load_library() -> tuple[bool, str]:
    """Load the library once; return (loaded, one line that says what happened)."""
    if not LIBRARY.exists():
        return False, (
            f"not built: {LIBRARY.name} is missing beside the package; install with a C++ compiler"
            " and without SSC_SKIP_BUILD=1 (the slower PyTorch reference serves meanwhile)"
        )
    try:
        torch.ops.load_library(str(LIBRARY))  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError) as error:
        first_line = str(error).strip().splitlines()[0]
        return False, (
            f"{LIBRARY.name} does not load into torch {torch.__version__}: {first_line}"
            " (rebuild it against this torch: pip install --no-build-isolation .)"
        )
    return True, f"loaded {LIBRARY.name}"


def _backend_from_environment() -> str:
    name = os.environ.get("SSC_BACKEND") or "auto"
    if name not in _BACKENDS:
        raise ValueError(f"SSC_BACKEND must be one of {', '.join(_BACKENDS)}, got {name!r}")
    return name


# Read once: torch.compile guards on these module globals, which it could not do for getenv.
_loaded, _reason = _load_library()
_backend = _backend_from_environment()
if _backend == "native" and not _loaded:
    raise ImportError(f"SSC_BACKEND=native, but the compiled library is {_reason}")


def library_loaded() -> bool:
    """True if the compiled library was found and loaded, whichever backend is chosen."""
    return _loaded


def has_native() -> bool:
    """True if the compiled library is loaded and SSC_BACKEND=reference does not forbid its use."""
    return _loaded and _backend != "reference"


def native_for(device: torch.device) -> bool:
    """True if compiled kernels serve tensors on `device`; else the reference does."""
    return _loaded and _backend != "reference" and device.type in _NATIVE_DEVICES


def native_reason() -> str:
    """One line: that the library is loaded, or why it is not."""
    return _reason


def backend_name() -> str:
    """The choice made by SSC_BACKEND or `use_backend`: "auto", "native" or "reference"."""
    return _backend


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose the backend inside a `with` block, as the variable SSC_BACKEND does for a process.

    Args:
        name: "reference" (plain PyTorch), "native" (RuntimeError if it is not loaded) or "auto".
    """
    global _backend
    if name not in _BACKENDS:
        raise ValueError(f"use_backend: name must be one of {', '.join(_BACKENDS)}, got {name!r}")
    if name == "native" and not _loaded:
        raise RuntimeError(f"use_backend: the compiled library is {_reason}")
    previous, _backend = _backend, name
    try:
        yield
    finally:
        _backend = previous
