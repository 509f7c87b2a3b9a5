"""Runs CUDA kernels on the CPU: a bench of one variant of csrc/simt, for torch's CPU tensors.

    bench = Bench("checked", schedule="shuffled", seed=1)
    bench.buffer("x", x)                      # readable and writable
    bench.call("scale", x, x.numel(), 2.0, 4)  # raises SimtError with the findings

The modules come from `make simt` (build/simt) or from the folder that SSC_SIMT_DIR names.
SSC_PTX_DIR may name a folder with the kernels of nvcc over an executor of PTX (tests/ptx),
and PTX_ARCH the architecture that it plays. The fixture `executor` says whose turn it is.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
import torch

import sampled_softmax_cuda as ssc

from . import ROOT

FOLDER = Path(os.environ.get("SSC_SIMT_DIR", ROOT / "build/simt/simt"))
PTX_FOLDER = Path(os.environ["SSC_PTX_DIR"]) if os.environ.get("SSC_PTX_DIR") else None
PTX_MAJOR = int(os.environ.get("PTX_ARCH", "80")) // 10
SCHEDULES = ("ascending", "descending", "shuffled")

Mode = Literal["in", "out", "inout"]


class SimtError(RuntimeError):
    """The findings of the executor in a launch.

    Attributes:
        findings: a dictionary for each, with kind, message, place and count.
        kinds: the kinds alone, such as {"race"}.
    """

    def __init__(self, findings: list[dict[str, Any]], error: int) -> None:
        self.findings = findings
        self.kinds = {finding["kind"] for finding in findings}
        lines = [f"{f['kind']} at {f['place']}: {f['message']}" for f in findings]
        super().__init__("\n".join(lines) or f"cudaError {error}")


_executor = "simt"  # "simt" or "ptx"


@contextmanager
def use_executor(name: str) -> Iterator[None]:
    """Inside, benches are of this executor."""
    global _executor
    previous, _executor = _executor, name
    try:
        yield
    finally:
        _executor = previous


def module_path(variant: str) -> Path:
    """The library of csrc/simt (plain, checked, asan or ops, its operators), or of PTX (the one
    bench, or ops)."""
    if _executor == "simt":
        return FOLDER / f"ssc_simt_{variant}.so"
    assert PTX_FOLDER is not None
    return PTX_FOLDER / f"ssc_ptx_{'ops' if variant == 'ops' else 'bench'}.so"


def available(variant: str) -> bool:
    return module_path(variant).is_file()


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_modules: dict[Path, ModuleType] = {}


class Bench:
    """One variant (plain, checked or asan) with the options of the launches to come.

    Options: schedule ("ascending", "descending", "shuffled"), seed, strict_exit, shared_limit,
    races, bounds, initialised, statistics, max_findings; csrc/simt/executor.h has their defaults.
    A process has one executor per variant: making a bench resets it.
    """

    def __init__(self, variant: str = "checked", **options: Any) -> None:
        self.compiled_by_nvcc = _executor == "ptx"
        if self.compiled_by_nvcc and options.get("statistics"):
            pytest.skip("csrc/simt's hooks count memory traffic; the executor of PTX does not")
        path = module_path(variant)
        if path not in _modules:
            _modules[path] = load(path)
        self.module = _modules[path]
        self.module.configure(**options)
        self.module.clear_buffers()
        self.module.clear_findings()
        self.module.clear_statistics()
        self._alive: list[torch.Tensor] = []

    def buffer(self, name: str, tensor: torch.Tensor, mode: Mode = "inout") -> torch.Tensor:
        """Lets kernels touch the tensor: "in" read, "inout" both, "out" read only what they wrote.

        The range is that of the tensor's elements, so a view may be shorter than its storage.
        """
        start = tensor.data_ptr()
        spans = [(n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)]
        elements = 0 if tensor.numel() == 0 else 1 + sum(spans)
        size = elements * tensor.element_size()
        self.module.add_buffer(name, start, size, writable=mode != "in", initialised=mode != "out")
        self._alive.append(tensor)
        return tensor

    def call(self, name: str, *arguments: torch.Tensor | float | bool | None) -> None:
        """Calls a launcher; tensors become addresses, None a null pointer."""
        raw = []
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                raw.append(argument.data_ptr())
            else:
                raw.append(0 if argument is None else argument)
        error = self.module.call(name, *raw)
        findings = self.module.findings()
        self.module.clear_findings()
        if error != 0 or findings:
            raise SimtError(findings, error)

    def capability(self, major: int, tf32: bool = False) -> int:
        """The compute capability's major number to launch kernels with, for a test of `major`.x.

        csrc/simt runs the code of all of them. nvcc has compiled for one, and the test is skipped
        if that has no such code.
        """
        if not self.compiled_by_nvcc:
            return major
        if major < 8 <= PTX_MAJOR:
            pytest.skip("compiled for 8.0 or later: no code for 7.x")
        if tf32 and PTX_MAJOR < 8:
            pytest.skip("compiled for 7.5: no tf32")
        return PTX_MAJOR

    def statistics(self) -> list[dict[str, Any]]:
        """One dictionary per line, kind of access and kernel, since the bench was made."""
        return self.module.statistics()


def require(variant: str) -> None:
    """Skips the test if the variant is not built; in CI, where it must be, fails."""
    if available(variant):
        return
    target = "simt" if _executor == "simt" else "ptx-check"
    reason = f"{module_path(variant)} is not there: `make {target}` builds it"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def sorted_arrivals(
    bench: Bench,
    kind: str,
    drawn: tuple[Any, ...],
    first_row: int,
    rows: int,
    exclude: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Times and classes of races as first_arrivals takes them, the sort by torch."""
    num_classes = int(drawn[-2])
    shape = (rows, num_classes + num_classes % 2)
    times = bench.buffer("times", torch.full(shape, torch.nan, dtype=torch.float64), "out")
    classes = bench.buffer("classes", torch.full(shape, -7), "out")
    bench.call(f"arrival_times_{kind}", *drawn, first_row, rows, times, classes)
    assert torch.equal(classes, torch.arange(shape[1]).expand(shape))
    if exclude is not None:
        bench.call("bar_classes", exclude, *exclude.shape, num_classes, times)
    rising, order = times.sort(dim=1, stable=True)
    return bench.buffer("rising", rising, "in"), bench.buffer("arrivals", order, "in")


def proposal_arguments(bench: Bench, kind: str, sampler: ssc.Sampler) -> list[torch.Tensor | int]:
    if not isinstance(sampler, ssc.WeightedSampler):
        return [sampler.num_classes]
    q = sampler.probability_bits.view(torch.float64)
    bench.buffer("table", sampler.table, "in")
    bench.buffer("probabilities", q, "in")
    return [sampler.table, q, sampler.num_classes]
