"""build_info, `python -m sampled_softmax_cuda`, and the choice of a backend by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sampled_softmax_cuda as ssc
from helpers.backends import INSTRUCTION_SETS, unavailable, use_backend
from sampled_softmax_cuda.exact import exact_cross_entropy
from sampled_softmax_cuda.ops import library


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *code.split()],
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
    assert info["native"] == library.library_loaded()
    assert info["native_reason"]
    for key in ("cpu_isa", "cpu_isa_by_dtype", "cpu_isa_reason"):
        assert (info[key] is not None) == info["native"]


def test_module_prints_it() -> None:
    done = run("-m sampled_softmax_cuda")
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    for key, value in ssc.build_info().items():
        assert key in lines
        if isinstance(value, str):
            assert lines[key] == value


def test_the_self_check_prints_a_table(native: None) -> None:
    done = run("-m sampled_softmax_cuda --self-check")
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert lines[1].startswith("cpu: kernels for ")
    assert sum("of the error allowed" in line for line in lines) >= 17  # 4 families x 4, and draws
    assert ("cuda: no" in lines[-1]) == (not torch.cuda.is_available())
    done = run("-m sampled_softmax_cuda --self-check", SSC_CPU_ISA="mmx")
    assert done.returncode == 1
    assert "RuntimeError: SSC_CPU_ISA=mmx" in done.stdout
    assert "Please report this" in done.stdout


def test_variables_choose_the_backend(native: None) -> None:
    done = run("-m sampled_softmax_cuda", SSC_BACKEND="reference", SSC_CPU_ISA="scalar")
    assert "backend             reference" in done.stdout
    assert "cpu_isa             scalar" in done.stdout
    assert "float32 scalar, bfloat16 scalar, float16 scalar, float64 scalar" in done.stdout
    done = run("-m sampled_softmax_cuda", SSC_CPU_ISA="mmx")
    assert done.returncode == 0
    assert "SSC_CPU_ISA=mmx" in done.stdout


def test_says_which_instruction_set_serves_which_dtype(
    native: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for isa in INSTRUCTION_SETS:
        if unavailable(isa):
            continue
        monkeypatch.setenv("SSC_CPU_ISA", isa)
        info = ssc.build_info()
        others = "avx512" if isa in ("avx512_bf16", "amx_bf16") else isa
        expected = {"float32": others, "bfloat16": isa, "float16": others, "float64": others}
        assert info["cpu_isa_by_dtype"] == expected
        assert info["cpu_isa_reason"] == "SSC_CPU_ISA names it"


def processor_facts() -> set[str]:
    """ "intel" and the flags of this processor, as Linux names them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    flags = next((line.split(":")[1].split() for line in text.splitlines() if "flags" in line), [])
    return {*flags, *({"intel"} if "GenuineIntel" in text else ())}


def test_pairs_of_bfloat16_where_they_are_faster(
    native: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choice for this processor; tests/cpp/test_isa.cpp has that for others."""
    facts = processor_facts()
    if "avx512_bf16" not in facts:
        pytest.skip("this processor has no AVX512-BF16")
    slow = "intel" in facts and bool(facts & {"avx_vnni", "avx512_fp16", "amx_bf16"})
    tiles = unavailable("amx_bf16") is None
    many = "amx_bf16" if tiles else "avx512" if slow else "avx512_bf16"
    few = 2 if tiles else 4 if slow else 6
    monkeypatch.delenv("SSC_CPU_ISA", raising=False)
    info = ssc.build_info()
    assert info["cpu_isa_by_dtype"]["bfloat16"] == many
    assert ("widened" in info["cpu_isa_reason"]) == (slow and not tiles)

    weight, target = torch.randn(50, 32).bfloat16(), torch.arange(6)
    input = torch.randn(6, 32).bfloat16()

    def results(rows: int) -> list[torch.Tensor]:
        """The gradients of a sweep, which pairs round in another way, and the exact loss."""
        h, w = (x.clone().requires_grad_() for x in (input[:rows], weight))
        samples = ssc.Samples(torch.arange(50))
        loss = ssc.sampled_softmax_loss(h, w, target[:rows], samples)
        with torch.no_grad():
            exact = exact_cross_entropy(h, w, target[:rows], reduction="none")
        return [*torch.autograd.grad(loss, (h, w)), exact]

    others = {"avx512", "avx512_bf16", *(("amx_bf16",) if tiles else ())}
    for rows in (1, 2, 3, 4, 5, 6):
        monkeypatch.delenv("SSC_CPU_ISA", raising=False)
        chosen = results(rows)
        expected = "avx512_bf16" if rows <= few else many
        monkeypatch.setenv("SSC_CPU_ISA", expected)
        assert all(torch.equal(a, b) for a, b in zip(chosen, results(rows), strict=True)), rows
        for other in others - {expected}:
            monkeypatch.setenv("SSC_CPU_ISA", other)
            same = [torch.equal(a, b) for a, b in zip(chosen, results(rows), strict=True)]
            assert not all(same), (rows, other)


def test_an_unknown_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSC_BACKEND", "gpu")
    with pytest.raises(ValueError, match=r"SSC_BACKEND must be one of auto.*got 'gpu'"):
        library._backend_from_environment()


def test_a_missing_library_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "_C.abi3.so")
    loaded, reason = library._load_library()
    assert not loaded
    assert reason.startswith("not built: _C.abi3.so is missing")
    assert "\n" not in reason


def test_a_library_that_does_not_load_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    broken = tmp_path / "_C.abi3.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(library, "LIBRARY", broken)
    loaded, reason = library._load_library()
    assert not loaded
    assert "does not load into torch" in reason
    assert "\n" not in reason


def test_without_the_library_the_reference_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_loaded", False)
    assert not library.has_native()
    assert not library.native_for(torch.device("cpu"), "loss_rows")
    with pytest.raises(RuntimeError, match="compiled library is"), use_backend("scalar"):
        pass
    module = ssc.SampledSoftmaxLoss(4, 20, 5)
    loss = module(torch.randn(3, 4), torch.arange(3))
    loss.backward()
    assert type(loss.grad_fn).__name__ != "_TotalLossBackward"


def test_use_backend_refuses_other_names() -> None:
    with (
        pytest.raises(ValueError, match="must be one of auto, native, reference"),
        library.use_backend("x"),
    ):
        pass
