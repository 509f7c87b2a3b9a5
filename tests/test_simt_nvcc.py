"""The kernels of csrc/simt's tests are CUDA: nvcc takes the very same sources."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from simt_bench import ROOT


# The oldest architecture has no cp.async and no __reduce_add_sync.
@pytest.mark.parametrize(
    ("source", "architectures"), [("gemm_tile", (75, 90)), ("memory", (75,)), ("warps", (80,))]
)
def test_nvcc_compiles_the_same_source(
    source: str, architectures: tuple[int, ...], tmp_path: Path
) -> None:
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).is_file():
        pytest.skip("no nvcc here")
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    result = subprocess.run(
        [nvcc, "-std=c++20", "-c", *targets, "-Wno-deprecated-gpu-targets", f"-I{ROOT}",
         "-Werror=all-warnings", str(ROOT / f"tests/simt/{source}.cu"), "-o", str(tmp_path / "o")],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
