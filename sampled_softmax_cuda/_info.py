"""Facts of this installation, and the code that it runs."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch

from ._build import VERSION
from .ops import library

DISTRIBUTION = "sampled-softmax-cuda"


def version() -> str:
    """That of the build or the installed distribution; "0+unknown" for a bare checkout."""
    if VERSION is not None:
        return VERSION
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


def _cpu_isa() -> dict[str, Any]:
    """The keys cpu_isa, cpu_isa_by_dtype and cpu_isa_reason of build_info."""
    keys = ("cpu_isa", "cpu_isa_by_dtype", "cpu_isa_reason")
    if not library.library_loaded():
        return dict.fromkeys(keys)
    try:
        chosen, by_dtype, reason = library.cpu_isa()
        values: tuple[Any, ...] = (
            chosen,
            dict(line.split() for line in by_dtype.splitlines()),
            reason,
        )
    except RuntimeError as error:  # SSC_CPU_ISA names one that this CPU does not run
        values = (f"none: {str(error).splitlines()[0]}", None, None)
    return dict(zip(keys, values, strict=True))


def _cuda_architectures() -> list[str]:
    if not library.cuda_loaded():
        return []
    return library.cuda_architectures().split()


def _devices() -> list[str]:
    devices = [f"cpu: {torch.get_num_threads()} threads"]
    devices += [
        f"cuda:{index}: {torch.cuda.get_device_name(index)}"
        for index in range(torch.cuda.device_count())
    ]
    return devices


def build_info() -> dict[str, Any]:
    """Versions, what was compiled, and what is in use.

    Returns:
        A dict with the keys
        version, python, torch, torch_cuda (None for a CPU torch);
        native (whether the compiled library is loaded) and native_reason (one line);
        backend ("native" or "reference": what serves CPU tensors);
        cpu_isa ("scalar", "avx2", "avx512", "avx512_bf16", "amx_bf16"; None without the library),
        cpu_isa_by_dtype (the instruction set that multiplies matrices of each dtype) and
        cpu_isa_reason (why: the fastest that is known for this processor, or SSC_CPU_ISA);
        cuda_native and cuda_native_reason (the same of the library of CUDA kernels; without it the
        reference serves tensors on a GPU);
        cuda_architectures (what the CUDA kernels were compiled for, such as "9.0" or "12.0+PTX");
        devices.

    Example:
        >>> import sampled_softmax_cuda as ssc
        >>> info = ssc.build_info()
        >>> info["backend"] in ("native", "reference")
        True
    """
    return {
        "version": version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "native": library.library_loaded(),
        "native_reason": library.native_reason(),
        "backend": "native" if library.has_native() else "reference",
        **_cpu_isa(),
        "cuda_native": library.cuda_loaded(),
        "cuda_native_reason": library.cuda_reason(),
        "cuda_architectures": _cuda_architectures(),
        "devices": _devices(),
    }


def format_info(info: dict[str, Any]) -> str:
    """build_info as lines of `key  value`."""
    width = max(len(key) for key in info)
    lines = []
    for key, value in info.items():
        if isinstance(value, list):
            value = ", ".join(value) or "none"
        elif isinstance(value, dict):
            value = ", ".join(f"{name} {what}" for name, what in value.items())
        lines.append(f"{key:<{width}}  {'none' if value is None else value}")
    return "\n".join(lines)
