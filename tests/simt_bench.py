"""Runs CUDA kernels on the CPU: a bench of one variant of csrc/simt, for torch's CPU tensors.

    bench = Bench("checked", schedule="shuffled", seed=1)
    bench.buffer("x", x)                      # readable and writable
    bench.call("scale", x, x.numel(), 2.0, 4)  # raises SimtError with the findings

The modules come from `make simt` (build/simt) or from the folder that SSC_SIMT_DIR names.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("SSC_SIMT_DIR", ROOT / "build/simt/simt"))
SCHEDULES = ("ascending", "descending", "shuffled")

Mode = Literal["in", "out", "inout"]


class SimtError(RuntimeError):
    """What the executor found in a launch.

    Attributes:
        findings: a dictionary for each, with kind, message, place and count.
        kinds: the kinds alone, such as {"race"}.
    """

    def __init__(self, findings: list[dict[str, Any]], error: int) -> None:
        self.findings = findings
        self.kinds = {finding["kind"] for finding in findings}
        lines = [f"{f['kind']} at {f['place']}: {f['message']}" for f in findings]
        super().__init__("\n".join(lines) or f"cudaError {error}")


def module_path(variant: str) -> Path:
    return FOLDER / f"ssc_simt_{variant}.so"


def available(variant: str) -> bool:
    return module_path(variant).is_file()


def load(variant: str) -> ModuleType:
    name = f"ssc_simt_{variant}"
    spec = importlib.util.spec_from_file_location(name, module_path(variant))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_modules: dict[str, ModuleType] = {}


class Bench:
    """One variant (plain, checked or asan) with the options of the launches to come.

    Options: schedule ("ascending", "descending", "shuffled"), seed, strict_exit, shared_limit,
    races, bounds, initialised, statistics, max_findings; csrc/simt/executor.h has their defaults.
    A process has one executor per variant: making a bench resets it.
    """

    def __init__(self, variant: str = "checked", **options: Any) -> None:
        if variant not in _modules:
            _modules[variant] = load(variant)
        self.module = _modules[variant]
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

    def statistics(self) -> list[dict[str, Any]]:
        """One dictionary per line, kind of access and kernel, since the bench was made."""
        return self.module.statistics()


def require(variant: str) -> None:
    """Skips the test if the variant is not built; in CI, where it must be, fails."""
    if available(variant):
        return
    reason = f"{module_path(variant)} is not there: `make simt` builds it"
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
