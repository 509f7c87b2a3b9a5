"""The backends that the fixtures of conftest.py choose from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from sampled_softmax_cuda.ops import library

INSTRUCTION_SETS = ("scalar", "avx2", "avx512", "avx512_bf16", "amx_bf16")
BACKENDS = ("reference", *INSTRUCTION_SETS, "cuda")


def unavailable(backend: str) -> str | None:
    """Why `backend` cannot run here, or None."""
    if backend == "reference":
        return None
    if not library.library_loaded():
        return library.native_reason()
    if backend == "cuda":
        if not torch.cuda.is_available():
            return "no GPU"
        return None if library.cuda_loaded() else library.cuda_reason()
    with mock.patch.dict(os.environ, SSC_CPU_ISA=backend):
        try:
            torch.ops.sampled_softmax.cpu_isa()
        except RuntimeError as error:
            return str(error).splitlines()[0]
    return None


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Run with one of `BACKENDS`: the reference, the kernels of one instruction set of the CPU, or
    those of a GPU, on which tensors are made inside."""
    if backend == "reference":
        with library.use_backend("reference"):
            yield
    elif backend == "cuda":
        with library.use_backend("native"), torch.device("cuda"):
            yield
    else:
        with library.use_backend("native"), mock.patch.dict(os.environ, SSC_CPU_ISA=backend):
            yield
