"""PyTorch's settings of float32 products, for a block of a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# The values of torch.set_float32_matmul_precision, and the CPU's own setting that each makes.
SETTINGS = {"highest": "ieee", "high": "tf32", "medium": "bf16"}


@contextmanager
def fp32_precision(name: str) -> Iterator[None]:
    """The CPU's setting alone, by a value of torch.set_float32_matmul_precision."""
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = SETTINGS[name]
    try:
        yield
    finally:
        matmul.fp32_precision = before
