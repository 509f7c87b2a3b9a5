"""The state of a parameter: its memory, and whether it still fits."""

from __future__ import annotations

import math
import mmap
from typing import Any

import torch
from torch import Tensor

from ..memory import prefer_huge_pages

_AGAIN = "move the model before you make the optimizer, or load its state_dict again"

# Below this size, memory is written at once.
_LAZY_BYTES = 1 << 20


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; large ones on the CPU take memory from the operating system as rows are written."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < _LAZY_BYTES or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return prefer_huge_pages(torch.frombuffer(pages, dtype=dtype)).view(shape)


def check_state(
    fn: str, name: object, p: Tensor, state: dict[str, Any] | None, row_wise: str | None
) -> None:
    """ValueError if the state belongs to a parameter of another size or place.

    Args:
        name: the parameter's, for the message.
        row_wise: the state that has one number for each row, or None.
    """
    for key, value in (state or {}).items():
        if key == "step" or not isinstance(value, Tensor):
            continue
        if value.shape != (p.shape[:1] or (1,) if key == row_wise else p.shape):
            raise ValueError(
                f"{fn}: {name} is {list(p.shape)} now, and its state {key!r} is"
                f" {list(value.shape)}: make a new optimizer for a parameter of another size, or"
                " change its state alike"
            )
        if key == "compensation" and value.dtype != p.dtype:
            raise ValueError(
                f"{fn}: {name} is {p.dtype} now, and its {key} {value.dtype}: {_AGAIN}"
            )
        if (value.dtype == torch.float64) != (p.dtype == torch.float64):
            raise ValueError(
                f"{fn}: {name} is {p.dtype} now, and its state {key!r} {value.dtype}: {_AGAIN}"
            )
        if value.device != p.device:
            raise ValueError(
                f"{fn}: {name} is on {p.device} now, and its state {key!r} on {value.device}:"
                f" {_AGAIN}"
            )
