"""Fixtures that all tests share: the backends, and a fixed seed.

A test names the fixture that fits what it tests: `backend` for what kernels compute, `device` for
what Python does around them, `either` for what is the CPU's alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from simt_backend import use_simt

from sampled_softmax_cuda import testing


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _use(backend: str) -> Iterator[str]:
    """Runs a test with a backend, or skips it with the reason why that cannot run here.

    "simt" is the CUDA operators on tensors of the CPU, "native" the CPU's kernels by default.
    """
    if backend == "simt":
        with use_simt():
            yield backend
        return
    reason = testing.unavailable("scalar" if backend == "native" else backend)
    if reason is not None:
        pytest.skip(reason)
    if backend == "native":
        yield backend
        return
    with testing.use_backend(backend):
        yield backend


@pytest.fixture(params=[*testing.BACKENDS, "simt"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference, the CPU's kernels once per instruction set, those of CUDA on the CPU, and on a
    GPU: tensors are made there."""
    yield from _use(request.param)


@pytest.fixture(params=["reference", "native", "simt", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """`backend` with the instruction set by default, for what is above the kernels."""
    yield from _use(request.param)


@pytest.fixture(params=["native", "simt", "cuda"])
def compiled(request: pytest.FixtureRequest) -> Iterator[str]:
    """`device` without the reference, for the operators themselves."""
    yield from _use(request.param)


@pytest.fixture(params=["reference", "native"])
def either(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference and the CPU's kernels: for rules that are the CPU's."""
    yield from _use(request.param)


@pytest.fixture
def native() -> Iterator[str]:
    """The CPU's kernels with the instruction set that is chosen by default."""
    yield from _use("native")


@pytest.fixture
def gpu() -> Iterator[str]:
    """The kernels of a GPU, on which tensors are made."""
    yield from _use("cuda")


@pytest.fixture
def simt() -> Iterator[str]:
    """The CUDA operators on tensors of the CPU."""
    yield from _use("simt")
