"""Load the compiled operator libraries, and decide which backend serves a device.

The package works without them: `sampled_softmax_cuda.reference` then computes everything in plain
PyTorch. Why a library is missing is kept in `native_reason()` and `cuda_reason()` and shown by
`build_info()`. The CUDA kernels have a library of their own, because a CPU torch can't load it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._build import NAMESPACE, operator_name
from .._rules import host_has

LIBRARY = Path(__file__).parents[1] / "_C.abi3.so"
CUDA_LIBRARY = Path(__file__).parents[1] / "_C_cuda.so"

operators: Any = getattr(torch.ops, NAMESPACE)

_BACKENDS = ("auto", "native", "reference")


def _load_library() -> tuple[bool, str]:
    """Load the library once; return (loaded, one line that says what happened)."""
    if not LIBRARY.exists():
        return False, (
            f"not built: {LIBRARY.name} is missing beside the package; install with a C++ compiler"
            " and without SSC_SKIP_BUILD=1 (the slower PyTorch reference serves meanwhile)"
        )
    loaded, reason = _load_file(LIBRARY)
    if loaded and not torch._C._dispatch_has_kernel(operator_name("cpu_isa")):
        return False, (
            f"{LIBRARY.name} has no operators in the namespace {NAMESPACE!r} of _build.py: build it"
            f" with CMake's -DSSC_NAMESPACE={NAMESPACE}"
        )
    return loaded, reason


def _load_file(library: Path) -> tuple[bool, str]:
    try:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError) as error:
        # Python says which library, then the loader why, on a line of its own.
        first_line = str(error.__cause__ or error).strip().splitlines()[0]
        return False, (
            f"{library.name} does not load into torch {torch.__version__}: {first_line}"
            " (rebuild it against this torch: pip install --no-build-isolation .)"
        )
    return True, f"loaded {library.name}"


def _load_cuda_library(library_loaded: bool) -> tuple[bool, str]:
    """The same for the CUDA kernels, which only a CUDA build of torch can load."""
    if torch.version.cuda is None:
        return False, f"not used: torch {torch.__version__} is not built with CUDA"
    if not library_loaded:
        return False, f"not used: it extends {LIBRARY.name}, which is not loaded"
    if not CUDA_LIBRARY.exists():
        return False, (
            f"not built: {CUDA_LIBRARY.name} is missing beside the package; install with nvcc and"
            " SSC_WITH_CUDA=1 (the slower PyTorch reference serves GPUs meanwhile)"
        )
    return _load_file(CUDA_LIBRARY)


def _cuda_operators(loaded: bool) -> frozenset[str]:
    """The operators with a CUDA kernel."""
    if not loaded:
        return frozenset()
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    prefix = operator_name("")
    names = (name for name in torch._C._dispatch_get_all_op_names() if name.startswith(prefix))
    return frozenset(name.removeprefix(prefix) for name in names if has_kernel(name, "CUDA"))


def _backend_from_environment() -> str:
    name = os.environ.get("SSC_BACKEND") or "auto"
    if name not in _BACKENDS:
        raise ValueError(f"SSC_BACKEND must be one of {', '.join(_BACKENDS)}, got {name!r}")
    return name


# Read once: torch.compile guards on these module globals, which it could not do for getenv.
_loaded, _reason = _load_library()
_cuda_loaded, _cuda_reason = _load_cuda_library(_loaded)
_cuda_ops = _cuda_operators(_cuda_loaded)
_backend = _backend_from_environment()
if _backend == "native" and not _loaded:
    raise ImportError(f"SSC_BACKEND=native, but the compiled library is {_reason}")


def library_loaded() -> bool:
    """True if the compiled library was found and loaded, whichever backend is chosen."""
    return _loaded


def has_native() -> bool:
    """True if the compiled library is loaded and SSC_BACKEND=reference does not forbid its use."""
    return _loaded and _backend != "reference"


def cuda_loaded() -> bool:
    """True if the library of CUDA kernels was found and loaded, whichever backend is chosen."""
    return _cuda_loaded


def native_for(device: torch.device, operator: str) -> bool:
    """True if `operator` has a compiled kernel for tensors on `device`; else use the reference."""
    if not _loaded or _backend == "reference":
        return False
    if device.type == "cpu":
        return host_has(operator)
    return device.type == "cuda" and operator in _cuda_ops


def native_reason() -> str:
    """One line: that the library is loaded, or why it is not."""
    return _reason


def cuda_reason() -> str:
    """One line: that the library of CUDA kernels is loaded, or why it is not."""
    return _cuda_reason


def cpu_isa() -> tuple[str, str, str]:
    """The instruction set of the CPU's kernels, that of each dtype a line, and why.

    Raises:
        RuntimeError: SSC_CPU_ISA names one that this CPU does not run.
    """
    name, by_dtype, reason = operators.cpu_isa()
    return name, by_dtype, reason


def cuda_architectures() -> str:
    """The architectures that the CUDA kernels were compiled for, separated by spaces."""
    return str(operators.cuda_architectures())


def advise_huge_pages(tensor: Tensor) -> None:
    """Ask for 2 MiB pages under the tensor's memory."""
    operators.advise_huge_pages(tensor)


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
