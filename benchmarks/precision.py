"""Runs with products of float32 in a precision of torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# Values of torch.set_float32_matmul_precision, and what they set for the CPU.
PRECISIONS = {"highest": "ieee", "high": "tf32", "medium": "bf16"}


def in_precision(precision: str, run: Callable[[], Any]) -> Callable[[], Any]:
    """The same run, while the CPU's setting is that one."""
    matmul = torch.backends.mkldnn.matmul

    def run_in_precision() -> Any:
        before, matmul.fp32_precision = matmul.fp32_precision, PRECISIONS[precision]
        try:
            return run()
        finally:
            matmul.fp32_precision = before

    return run_in_precision
