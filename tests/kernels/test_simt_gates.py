"""Memory transfers of the CUDA matmuls, counted by csrc/simt: a regression fails here.

Shared memory without bank conflicts, gathers in whole sectors, and exactly the global traffic that
benchmarks/gpu_model.py counts with, as the head comments of score.cu and products.cu state it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gpu_model import matmul_traffic

from helpers import simt_negatives
from helpers.simt_bench import Bench, require
from helpers.simt_loss import PATHS, Path, accumulator, loss_and_grads, make_problem

BATCH, DIM, SAMPLES = 136, 144, 272  # several tiles of 64 and 128 each way, rows of whole sectors


def plain_step(bench: Bench, path: Path) -> None:
    dtype = path.dtype
    p = make_problem(BATCH, DIM, SAMPLES, 1000, dtype, bias=False)
    p.target[1] = 0  # every row counts: those that don't are not read
    k = torch.ones(BATCH, dtype=accumulator(dtype))
    loss_and_grads(bench, p, k, path=path, multiprocessors=1)


def negatives_step(bench: Bench, path: Path) -> None:
    p = simt_negatives.make_problem(BATCH, DIM, SAMPLES, 1000, 2, path.dtype)
    p.input[1] = 0.0
    p = p._replace(bias=None, counted=None)
    k = torch.ones(BATCH, dtype=accumulator(path.dtype))
    simt_negatives.run(bench, p, simt_negatives.Options(), k, multiprocessors=1)


STEPS = [(plain_step, path) for path in PATHS] + [
    (negatives_step, Path(dtype)) for dtype in (torch.float32, torch.bfloat16)
]


@pytest.fixture(scope="module", params=STEPS, ids=lambda step: f"{step[0].__name__}-{step[1]}")
def counted(
    request: pytest.FixtureRequest,
) -> tuple[list[dict[str, Any]], torch.dtype, int]:
    """Statistics of a step's matmuls, its dtype, the side of its tiles."""
    require("checked")
    step, path = request.param
    bench = Bench("checked", statistics=True)
    step(bench, path)
    matmuls = [
        line for line in bench.statistics() if "score_kernel" in line["kernel"] or is_product(line)
    ]
    return matmuls, path.dtype, 64 if path.dtype == torch.float64 else 128


def is_product(line: dict[str, Any]) -> bool:
    return "product_kernel" in line["kernel"]


def place(line: dict[str, Any]) -> str:
    return (
        f"{line['file']}:{line['line']} {line['kind']} in {line['kernel']}: "
        f"{line['transfers']} transfers, ideal {line['ideal']}"
    )


def test_the_main_loop_has_no_bank_conflicts(
    counted: tuple[list[dict[str, Any]], torch.dtype, int],
) -> None:
    lines = [
        line
        for line in counted[0]
        if (line["kind"].startswith("shared") or line["kind"] == "ldmatrix")
        and ("tile_" in line["file"] or "operand.h" in line["file"] or "mma.h" in line["file"]
             or "vector_access.h" in line["file"] or "async_copy.h" in line["file"])
    ]  # fmt: skip
    assert sum(line["instructions"] for line in lines) > 1000
    assert not [place(line) for line in lines if line["transfers"] > line["ideal"]]


def test_global_accesses_are_whole_sectors(
    counted: tuple[list[dict[str, Any]], torch.dtype, int],
) -> None:
    lines = [line for line in counted[0] if line["kind"].startswith("global")]
    # Rows of H and P, gathered rows of W, ids, results.
    assert not [place(line) for line in lines if line["transfers"] > line["ideal"]]


def test_global_traffic_is_what_the_model_says(
    counted: tuple[list[dict[str, Any]], torch.dtype, int],
) -> None:
    lines, dtype, side = counted
    size, wide = dtype.itemsize, accumulator(dtype).itemsize
    shapes = {  # m, n, k, and bytes of a result: dH goes out as such
        "score": [(BATCH, SAMPLES, DIM, wide)],
        "product": [(BATCH, DIM, SAMPLES, size), (SAMPLES, DIM, BATCH, wide)],
    }
    for kernel, matmuls in shapes.items():
        wanted = [
            matmul_traffic(*shape, size, result_size=result, side=side)
            for *shape, result in matmuls
        ]
        of_kernel = [line for line in lines if is_product(line) == (kernel == "product")]
        loads = sum(
            line["bytes"]
            for line in of_kernel
            if line["kind"] == "global load" and "::label" not in line["function"]
            and "operand.h" in line["file"]
        )  # fmt: skip
        assert loads == sum(traffic.operands for traffic in wanted)
        stores = sum(line["bytes"] for line in of_kernel if line["kind"] == "global store")
        result = sum(traffic.result for traffic in wanted)
        small = 64 * BATCH if kernel == "score" else 0  # (max, sum) and flags
        assert result <= stores <= result + small
