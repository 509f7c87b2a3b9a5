"""build_info, `python -m sampled_softmax_cuda`, and the choice of a backend by hand."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import sampled_softmax_cuda as ssc
from sampled_softmax_cuda import _load, testing


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *code.split(maxsplit=1)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_build_info() -> None:
    info = ssc.build_info()
    assert info["version"] == ssc.__version__
    assert info["torch"] == torch.__version__
    assert bool(info["cuda_architectures"]) == info["cuda_native"]
    assert info["cuda_native_reason"]
    assert info["devices"][0].startswith("cpu: ")
    assert info["native"] == _load.library_loaded()
    assert info["native_reason"]
    assert (info["cpu_isa"] is not None) == info["native"]


def test_module_prints_it() -> None:
    done = run("-m sampled_softmax_cuda")
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    for key, value in ssc.build_info().items():
        assert key in lines
        if isinstance(value, str):
            assert lines[key] == value


def test_variables_choose_the_backend(native: None) -> None:
    done = run("-m sampled_softmax_cuda", SSC_BACKEND="reference", SSC_CPU_ISA="scalar")
    assert "backend             reference" in done.stdout
    assert "cpu_isa             scalar" in done.stdout
    done = run("-m sampled_softmax_cuda", SSC_CPU_ISA="mmx")
    assert done.returncode == 0
    assert "SSC_CPU_ISA=mmx" in done.stdout


def test_an_unknown_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSC_BACKEND", "gpu")
    with pytest.raises(ValueError, match=r"SSC_BACKEND must be one of auto.*got 'gpu'"):
        _load._backend_from_environment()


def test_a_missing_library_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(_load, "LIBRARY", tmp_path / "_C.abi3.so")
    loaded, reason = _load._load_library()
    assert not loaded
    assert reason.startswith("not built: _C.abi3.so is missing")
    assert "\n" not in reason


def test_a_library_that_does_not_load_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    broken = tmp_path / "_C.abi3.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(_load, "LIBRARY", broken)
    loaded, reason = _load._load_library()
    assert not loaded
    assert "does not load into torch" in reason
    assert "\n" not in reason


def test_without_the_library_the_reference_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_load, "_loaded", False)
    assert not _load.has_native()
    assert not _load.native_for(torch.device("cpu"), "loss_rows")
    with pytest.raises(RuntimeError, match="compiled library is"), testing.use_backend("scalar"):
        pass
    module = ssc.SampledSoftmaxLoss(4, 20, 5)
    loss = module(torch.randn(3, 4), torch.arange(3))
    loss.backward()
    assert type(loss.grad_fn).__name__ != "_TotalLossBackward"


def test_use_backend_refuses_other_names() -> None:
    with (
        pytest.raises(ValueError, match="must be one of auto, native, reference"),
        _load.use_backend("x"),
    ):
        pass
