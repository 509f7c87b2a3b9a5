"""Fixtures that all tests share: the backends, and a fixed seed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sampled_softmax_cuda import testing


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=testing.BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference, and the compiled kernels once per instruction set that runs here."""
    reason = testing.unavailable(request.param)
    if reason is not None:
        pytest.skip(reason)
    with testing.use_backend(request.param):
        yield request.param


@pytest.fixture
def native() -> None:
    """The compiled kernels with the instruction set that is chosen by default."""
    reason = testing.unavailable("scalar")
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(params=["reference", "native"])
def either(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference, and the kernels with the default instruction set: for what is above them."""
    if request.param == "reference":
        with testing.use_backend("reference"):
            yield "reference"
        return
    reason = testing.unavailable("scalar")
    if reason is not None:
        pytest.skip(reason)
    yield "native"
