"""Memory of states: as many bytes for each class as the docs say, taken as rows are touched."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sampled_softmax_cuda as ssc
from helpers.row_steps import sparse


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize(
    ("kind", "options", "per_row"),
    [
        (ssc.optim.SGD, {}, 0),
        (ssc.optim.SGD, {"momentum": 0.9}, 4 * 64),
        (ssc.optim.Adagrad, {}, 4 * 64),
        (ssc.optim.RowWiseAdagrad, {}, 4),
        (ssc.optim.AdamW, {"skipped": "freeze"}, 8 * 64),
        (ssc.optim.AdamW, {"skipped": "freeze", "state_dtype": torch.bfloat16}, 4 * 64),
        (ssc.optim.RowWiseAdam, {"skipped": "freeze"}, 4 * 64 + 4),
    ],
)
def test_bytes_for_each_row(kind: Any, options: dict[str, Any], per_row: int) -> None:
    p = nn.Parameter(torch.zeros(100, 64))
    p.grad = sparse(torch.tensor([7]), torch.ones(1, 64), (100, 64))
    optimizer = kind([p], lr=0.1, **options)
    optimizer.step()
    states = [v for name, v in optimizer.state[p].items() if name != "step"]
    assert sum(v.numel() * v.itemsize for v in states) == 100 * per_row


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("kind", [ssc.optim.RowWiseAdagrad, ssc.optim.AdamW])
def test_ten_million_classes(kind: Any) -> None:
    """Three steps over 5 rows of 10^7 x 64: 2.4 GiB of weights and as much for each moment exist
    where they are touched alone."""
    size = (10_000_000, 64)
    before = resident()
    p = nn.Parameter(torch.empty(size))
    optimizer = kind([p], lr=0.1)
    for _ in range(3):
        ids = torch.tensor([0, 1, 5_000_000, 9_999_998, 9_999_999])
        with torch.no_grad():
            p[ids] = 1.0
        p.grad = sparse(ids, torch.ones(5, 64), size)
        optimizer.step()
    assert bool((p[ids] < 1.0).all())
    assert resident() - before < 1 << 28
