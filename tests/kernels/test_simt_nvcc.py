"""The kernels of csrc/simt's tests are CUDA: nvcc takes the very same sources."""

from __future__ import annotations

from pathlib import Path

import nvcc
import pytest


# The oldest architecture has no cp.async and no __reduce_add_sync.
@pytest.mark.parametrize(
    ("source", "architectures"), [("gemm_tile", (75, 90)), ("memory", (75,)), ("warps", (80,))]
)
def test_nvcc_compiles_the_same_source(
    source: str, architectures: tuple[int, ...], tmp_path: Path
) -> None:
    if nvcc.find_nvcc() is None:
        pytest.skip("no nvcc here")
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    nvcc.run_nvcc(
        ["-c", *targets, "-o", str(tmp_path / "o")], nvcc.ROOT / f"tests/simt/{source}.cu"
    )
