"""Fixtures that all tests share: the backends, and a fixed seed.

A test names the fixture that fits what it tests: `backend` for what kernels compute, `device` for
what Python does around them, `either` for what is the CPU's alone. Tests of the kernels by
themselves take `executor`. Where SSC_PTX_DIR is set, what runs on "simt" runs on "ptx" too.

A test that is marked slow is left to `make test-all`: by itself, by its folder, or because its
`backend` is an instruction set that this CPU's kernels don't choose.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

import sampled_softmax_cuda as ssc
from helpers import cpu_time, ptx_launches, simt_bench
from helpers.backends import BACKENDS, INSTRUCTION_SETS, unavailable, use_backend
from helpers.simt_backend import use_simt

# Left to `make test-all`: the kernels of CUDA by themselves, under all schedules and checks, where
# `make test` runs them in one schedule below the operators; and tests of several processes.
SLOW_FOLDERS = {"kernels", "distributed"}

# Executors of the CUDA kernels on the CPU: csrc/simt, and one of PTX where there is one.
EXECUTORS = ["simt"]
if simt_bench.PTX_FOLDER is not None:
    EXECUTORS.append(pytest.param("ptx", marks=pytest.mark.ptx))


def pytest_configure(config: pytest.Config) -> None:
    # Graphs that another version of the operators left in Inductor's cache call them as they were.
    os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    config.pluginmanager.register(cpu_time)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _launches(request: pytest.FixtureRequest) -> Iterator[None]:
    """Which kernels of nvcc the test runs, for tools/ptx_check.py."""
    if request.node.get_closest_marker("ptx") is None:
        yield
        return
    with ptx_launches.recorded(request.node.nodeid):
        yield


def _parameters(item: pytest.Item) -> dict[str, object]:
    return item.callspec.params if hasattr(item, "callspec") else {}


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drops what would repeat another test, and marks slow what `make test` leaves out."""

    def again(item: pytest.Item) -> bool:
        """The executor of PTX has one build where csrc/simt has several."""
        chosen = _parameters(item)
        return chosen.get("executor") == "ptx" and chosen.get("variant") == "checked"

    dropped = list(filter(again, items))
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if not again(item)]
    other_sets = set(INSTRUCTION_SETS) - {ssc.build_info()["cpu_isa"]}
    for item in items:
        in_slow_folder = item.path.parent.name in SLOW_FOLDERS
        if in_slow_folder or _parameters(item).get("backend") in other_sets:
            item.add_marker(pytest.mark.slow)


def _use(backend: str) -> Iterator[str]:
    """Runs a test with a backend, or skips it with the reason why that cannot run here.

    "simt" and "ptx" are the CUDA operators on tensors of the CPU, "native" the CPU's kernels by
    default.
    """
    if backend in ("simt", "ptx"):
        with use_simt(backend):
            yield backend
        return
    reason = unavailable("scalar" if backend == "native" else backend)
    if reason is not None:
        pytest.skip(reason)
    if backend == "native":
        yield backend
        return
    with use_backend(backend):
        yield backend


@pytest.fixture(params=[*BACKENDS, *EXECUTORS])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference, the CPU's kernels once per instruction set, those of CUDA on the CPU, and on a
    GPU: tensors are made there."""
    yield from _use(request.param)


@pytest.fixture(params=["reference", "native", *EXECUTORS, "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """`backend` with the instruction set by default, for what is above the kernels."""
    yield from _use(request.param)


@pytest.fixture(params=["native", *EXECUTORS, "cuda"])
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


@pytest.fixture(params=EXECUTORS)
def simt(request: pytest.FixtureRequest) -> Iterator[str]:
    """The CUDA operators on tensors of the CPU."""
    yield from _use(request.param)


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Iterator[str]:
    """Whose benches (simt_bench.Bench) the test gets."""
    with simt_bench.use_executor(request.param):
        yield request.param
